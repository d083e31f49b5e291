"""The table of the formats of other runtimes, by their names in options."""

from .deployment_format import DeploymentFormat

DEPLOYMENT_FORMATS: dict[str, DeploymentFormat] = {}
