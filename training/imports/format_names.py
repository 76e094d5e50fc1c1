"""Lists the import formats without loading their readers, which need polars."""

from enum import StrEnum


class FormatName(StrEnum):
    """A format that `vlm2rec data import` reads."""

    GOOGLE_MERCHANT = "google-merchant"
    AMAZON_2023 = "amazon-2023"
    MOVIELENS = "movielens"
    HM = "hm"
    SHOPIFY = "shopify"
    MIND = "mind"
    POSTGRES = "postgres"
