"""Slow, obvious twins of the graders: nothing here is bounded, so feed it short, tame text only."""

import itertools
import re
from collections import Counter
from fractions import Fraction


def is_solution(grid: str) -> bool:
    """Whether 16 digits are a valid 4x4 Sudoku."""
    rows = [[4 * r + c for c in range(4)] for r in range(4)]
    columns = [[4 * r + c for r in range(4)] for c in range(4)]
    squares = [[4 * (r + i) + c + j for i in (0, 1) for j in (0, 1)] for r in (0, 2) for c in (0, 2)]
    return all(sorted(grid[i] for i in unit) == list("1234") for unit in rows + columns + squares)


def all_grids() -> list[str]:
    """Every solution grid: rows are permutations, kept where the whole is valid."""
    rows = ["".join(p) for p in itertools.permutations("1234")]
    return [g for four in itertools.product(rows, repeat=4) if is_solution(g := "".join(four))]


def sudoku_score(answer: str, puzzle: str, grids: list[str]) -> dict[str, float]:
    """Scores of a 16-character answer, against the nearest of the puzzle's solutions."""
    keeps = [all(p in ("0", a) for p, a in zip(puzzle, g, strict=True)) for g in grids]
    solutions = [g for g, keep in zip(grids, keeps, strict=True) if keep]
    blanks = [i for i in range(16) if puzzle[i] == "0"]
    kept = all(p in ("0", a) for p, a in zip(puzzle, answer, strict=True))
    right = max(sum(answer[i] == s[i] for i in blanks) for s in solutions)
    return {"solved": float(answer in solutions), "cells": right / len(blanks), "clues_kept": float(kept)}


class NotAnExpression(Exception):
    """The text is outside the language."""


class _Reader:
    """Recursive descent over one-character tokens; products bind tighter than sums, signs tighter still."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = re.findall(r"\d+|[-+*/()]", text)
        if "".join(self.tokens) != re.sub(r"\s", "", text) or re.search(r"\d\s+\d", text):
            raise NotAnExpression(text)
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self) -> str:
        if not self.tokens:
            raise NotAnExpression("ends early")
        return self.tokens.pop(0)

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while self.peek() in ("*", "/"):
            value = value * self.factor() if self.take() == "*" else value / self.factor()
        return value

    def factor(self) -> Fraction:
        token = self.take()
        if token == "-":
            return -self.factor()
        if token == "+":
            return self.factor()
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise NotAnExpression("unclosed")
            return value
        if not token.isdigit():
            raise NotAnExpression(token)
        self.numbers.append(int(token))
        return Fraction(int(token))


def countdown_solved(expression: str, numbers: list[int], target: int) -> bool:
    """Whether a plain expression reaches the target with every number used once."""
    try:
        reader = _Reader(expression)
        value = reader.sum()
    except (NotAnExpression, ZeroDivisionError):
        return False
    return not reader.tokens and Counter(reader.numbers) == Counter(numbers) and value == target
