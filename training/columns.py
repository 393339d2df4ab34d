"""Columns of numbers as NumPy arrays, whole, by slices or by rows, for whatever reads what a scan has written."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa


class NumberColumn:
    """
    A column of numbers, shape `(N,)`, or of fixed-length lists, shape `(N, D)`, whose rows are read on demand.

    A slice copies nothing where the column lies in one piece, an array of row numbers copies those rows; neither makes
    Python objects of numbers.

    Raises:
        `ValueError`: the column is missing; when it is read, also: it has nulls, or holds lists of varying length.
    """

    def __init__(self, dataset: datasets.Dataset, name: str):
        if name not in dataset.column_names:
            raise ValueError(f"the dataset has no column {name}; its columns are {', '.join(dataset.column_names)}")
        self.name = name
        self._table = dataset.select_columns([name]).with_format("arrow")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        column = self._table[rows][self.name]
        if column.null_count:
            raise ValueError(f"the column {self.name} has {column.null_count:,} missing values")
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            raise ValueError(f"the column {self.name} must hold fixed-length lists, not {column.type}")
        if pa.types.is_fixed_size_list(column.type):
            width = column.type.list_size
            pieces = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks]
        else:
            pieces = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def column_to_numpy(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """The whole of a [`NumberColumn`]. For features of many posts that is much; read those slice by slice."""
    return NumberColumn(dataset, name)[:]
