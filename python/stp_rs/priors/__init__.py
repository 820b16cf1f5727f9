"""Spatial priors: completion tokens that are fixed before decoding (docs/priors.md).

A prior is any callable (prompts, completion_length) -> PriorSet. Hard priors compose in order and conflicts are errors;
a soft one (its class says `soft = True`) only fills what is free. Shapes in this package: R rows, L completion length,
V vocabulary.
"""

from stp_rs.priors.base import Prior as Prior
from stp_rs.priors.base import allowed_tokens as allowed_tokens
from stp_rs.priors.base import compose_priors as compose_priors
from stp_rs.priors.choice import Anneal as Anneal
from stp_rs.priors.choice import AnswerSpan as AnswerSpan
from stp_rs.priors.choice import eligible_tokens as eligible_tokens
from stp_rs.priors.choice import tag_span as tag_span
from stp_rs.priors.frequency import Frequency as Frequency
from stp_rs.priors.hashes import policy_hash as policy_hash
from stp_rs.priors.hashes import tokenizer_hash as tokenizer_hash
from stp_rs.priors.hint import Hint as Hint
from stp_rs.priors.length import Length as Length
from stp_rs.priors.length import solution_length as solution_length
from stp_rs.priors.static import END as END
from stp_rs.priors.static import Copy as Copy
from stp_rs.priors.static import Template as Template
from stp_rs.priors.vocabulary import Vocabulary as Vocabulary
