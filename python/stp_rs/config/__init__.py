"""Every option of a run: sections, presets, and what is checked."""

from stp_rs.config.presets import PRESETS as PRESETS
from stp_rs.config.presets import PRUNINGS as PRUNINGS
from stp_rs.config.sections import AdvantageConfig as AdvantageConfig
from stp_rs.config.sections import LikelihoodConfig as LikelihoodConfig
from stp_rs.config.sections import LossConfig as LossConfig
from stp_rs.config.sections import OptimConfig as OptimConfig
from stp_rs.config.sections import PolicyConfig as PolicyConfig
from stp_rs.config.sections import PruningConfig as PruningConfig
from stp_rs.config.sections import RolloutConfig as RolloutConfig
from stp_rs.config.sections import RunConfig as RunConfig
from stp_rs.config.sections import STPConfig as STPConfig
from stp_rs.config.sections import flat_fields as flat_fields
