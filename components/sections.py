"""Each step's part of a run's configuration, as the JSON that its component takes. Imports neither torch nor kfp."""

from components.assign.config import AssignConfig
from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.normalize.config import NormalizeConfig


def sections(config: RunConfig) -> dict[str, str]:
    """JSON by step name; a change of one section makes only the steps that read it run again."""
    return {
        "normalize": config.section(NormalizeConfig).model_dump_json(),
        "pretrain": config.section(PretrainSettings).model_dump_json(),
        "finetune": config.section(MeanTeacherSettings).model_dump_json(),
        "pseudo_label": config.section(MeanTeacherSettings).model_dump_json(),
        "infer": config.section(InferSettings).model_dump_json(),
        "assign": config.section(AssignConfig).model_dump_json(),
        "report": config.model_dump_json(),
    }
