"""Rows of a training set by rollout batch: lists, `datasets.Dataset`, and streams (`datasets.IterableDataset`)."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from stp_rs.data.prompts import batch_indices, check_row, rows_of_batches
from stp_rs.errors import ConfigError

Row = Mapping[str, Any]


class Rows:
    """The prompts of each rollout batch of a run.

    Args:
        dataset: rows that can be indexed, or a stream of rows.
        batch: prompts of a rollout batch.
        seed: key of the order; None keeps the dataset's own in every epoch.
        columns: columns that are kept; None keeps all.
        workers: arguments of torch's DataLoader for reading ahead in other processes; none reads here.

    Raises:
        ConfigError: no dataset, or one without rows.
    """

    def __init__(
        self,
        dataset: Any,
        batch: int,
        *,
        seed: int | None,
        columns: Sequence[str] | None = None,
        workers: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(dataset, Mapping):
            raise ConfigError(f"train_dataset: got the sets {', '.join(map(str, dataset))}, needs one of them")
        if dataset is None or not isinstance(dataset, Iterable):
            raise ConfigError(f"train_dataset: got {type(dataset).__name__}, needs rows with a column `prompt`")
        whole: Any = dataset
        self.dataset = whole
        self.batch, self.seed, self.columns = batch, seed, columns
        indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        self.size: int | None = len(whole) if indexed else None
        if self.size == 0:
            raise ConfigError("train_dataset: got no rows, needs at least one")
        check_rows(dataset, "train_dataset")
        self._workers = dict(workers or {})
        self._stream: Iterator[tuple[int, list[Row]]] | None = None
        self._next = 0

    def __call__(self, number: int) -> tuple[list[Row], list[int]]:
        """Return the rows of rollout batch `number`, and what names each prompt: its place in the dataset or stream."""
        if self.size is None:
            rows = self._streamed(number)
            return rows, list(range(number * self.batch, (number + 1) * self.batch))
        places = self._places(number)
        rows = self._ahead(number) if self._workers else [self.dataset[i] for i in places]
        return [self._kept(row) for row in rows], places

    def epochs(self, batches: float) -> float | None:
        """Return how often so many batches have gone through the dataset; None for a stream."""
        return None if self.size is None else batches * self.batch / self.size

    def read(self, batches: int) -> list[Row]:
        """Return the rows that the first `batches` batches read, each once, in the dataset's order.

        Raises:
            ConfigError: the dataset is a stream.
        """
        if self.size is None:
            raise ConfigError("train_dataset: got a stream, needs rows that can be read before training")
        if self.seed is None:
            return [self._kept(self.dataset[i]) for i in range(min(self.size, batches * self.batch))]
        return [self._kept(self.dataset[i]) for i in rows_of_batches(batches, self.batch, self.size, self.seed)]

    def spread(self, most: int) -> Iterator[Row]:
        """Yield the rows of the dataset in its order; of more than `most`, so many from its whole length."""
        assert self.size is not None  # noqa: S101 - asked of an indexed dataset only
        count = min(self.size, most)
        return (self._kept(self.dataset[i * self.size // count]) for i in range(count))

    def _places(self, number: int) -> list[int]:
        assert self.size is not None  # noqa: S101 - asked of an indexed dataset only
        if self.seed is None:
            return [place % self.size for place in range(number * self.batch, (number + 1) * self.batch)]
        return batch_indices(number, self.batch, self.size, self.seed)

    def _kept(self, row: Row) -> Row:
        return row if self.columns is None else {name: row[name] for name in self.columns if name in row}

    def _streamed(self, number: int) -> list[Row]:
        """Return the rows of a batch of a stream, which starts again at its end."""
        if self._stream is None or number < self._next:
            self._stream, self._next = enumerate(self._batches()), 0
        for place, rows in self._stream:
            self._next = place + 1
            if place == number:
                return [self._kept(row) for row in rows]
        raise ConfigError("train_dataset: got a stream without rows, needs at least one")

    def _batches(self) -> Iterator[list[Row]]:
        def endless() -> Iterator[Row]:
            while True:
                row = None
                for row in self.dataset:
                    yield row
                if row is None:
                    return

        rows = endless()
        while batch := list(itertools.islice(rows, self.batch)):
            yield batch

    def _ahead(self, number: int) -> list[Row]:
        """Return the rows of a batch that worker processes read while the batch before was trained on."""
        if self._stream is None or number != self._next:
            places = map(self._places, itertools.count(number))
            loader: Any = DataLoader(self.dataset, batch_sampler=places, collate_fn=list, **self._workers)
            self._stream, self._next = iter(enumerate(loader, number)), number
        self._next += 1
        rows: list[Row] = next(self._stream)[1]
        return rows


def check_rows(dataset: Any, name: str) -> None:
    """Check the rows of a list, or the first one of any other set that can be indexed, before anything is trained.

    Raises:
        ConfigError: the set is a text.
        InvalidValueError: a row has no prompt.
    """
    if isinstance(dataset, str | bytes):
        raise ConfigError(f"{name}: got the text {dataset!r:.60}, needs rows with a column `prompt`")
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, Mapping)
    first = [dataset[0]] if indexed and len(dataset) else []
    for index, row in enumerate(dataset if isinstance(dataset, list | tuple) else first):
        check_row(row, index, name)
