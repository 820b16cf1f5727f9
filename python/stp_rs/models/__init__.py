"""Policies that stp_rs can make itself."""

from stp_rs.models.tiny import character_tokenizer as character_tokenizer
from stp_rs.models.tiny import load_policy as load_policy
from stp_rs.models.tiny import load_tokenizer as load_tokenizer
from stp_rs.models.tiny import tiny_policy as tiny_policy
