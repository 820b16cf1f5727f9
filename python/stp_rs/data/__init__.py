"""Data: prompts as arrays of token ids, and the record of the completions that were drawn for them."""

from stp_rs.data.prompts import PromptBatch as PromptBatch
from stp_rs.data.prompts import encode_prompts as encode_prompts
