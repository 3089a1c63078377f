"""Sparse patterns: each a file that says which blocks of an attention are worth computing."""

from .base import Moment, Pattern, Situation, Tokens

__all__ = ["Moment", "Pattern", "Situation", "Tokens"]
