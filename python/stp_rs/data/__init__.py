"""Prompts: rows of text become arrays of token ids."""

from stp_rs.data.prompts import PromptBatch as PromptBatch
from stp_rs.data.prompts import encode_prompts as encode_prompts
