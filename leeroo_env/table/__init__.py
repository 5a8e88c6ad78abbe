"""Stores the experts' answers: a directory on disk, tensors on one device."""

from leeroo_env.table.files import read_embeddings, read_parquet, write_mapped, write_table
from leeroo_env.table.schema import ANSWER_COLUMNS, SPLITS, ExpertInfo, TableInfo, hash_split
from leeroo_env.table.table import ExpertTable

__all__ = [
    "ANSWER_COLUMNS",
    "SPLITS",
    "ExpertInfo",
    "ExpertTable",
    "TableInfo",
    "hash_split",
    "read_embeddings",
    "read_parquet",
    "write_mapped",
    "write_table",
]
