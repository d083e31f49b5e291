"""The table of the formats of other runtimes, by their names in options."""

from .deployment_format import DeploymentFormat
from .onnx.genai.genai_format import GenaiFormat
from .onnx.onnx_format import OnnxFormat

DEPLOYMENT_FORMATS: dict[str, DeploymentFormat] = {
    "onnx": OnnxFormat(),
    "onnx-genai": GenaiFormat(),
}
