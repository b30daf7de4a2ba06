"""The exceptions that are a user's mistake or a user's disk: told in one line, no trace."""

from vse_jax.checkpoint import CheckpointError
from vse_jax.config import ConfigError
from vse_jax.data.split import DataError
from vse_jax.evaluators.retrieval import EvaluationError
from vse_jax.exporting.folder import ExportError
from vse_jax.hub import HubError
from vse_jax.index.database import StoreError
from vse_jax.models.backbones.weights import WeightsError
from vse_jax.parallel import ProcessesError
from vse_jax.report.runs import ReportError
from vse_jax.train_step import NonFiniteLoss
from vse_jax.workdir import WorkdirError

USER_ERRORS = (
    CheckpointError,
    ConfigError,
    DataError,
    EvaluationError,
    ExportError,
    HubError,
    NonFiniteLoss,
    ProcessesError,
    ReportError,
    StoreError,
    WeightsError,
    WorkdirError,
)
