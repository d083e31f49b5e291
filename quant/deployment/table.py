"""The table of the formats of other runtimes, by their names in options."""

from .deployment_format import DeploymentFormat
from .gguf.format import GGUFFormat
from .onnx.genai.genai_format import GenaiFormat
from .onnx.onnx_format import OnnxFormat

DEPLOYMENT_FORMATS: dict[str, DeploymentFormat] = {
    format.name: format for format in (GGUFFormat(), OnnxFormat(), GenaiFormat())
}
