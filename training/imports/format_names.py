"""Names of the formats, apart from their readers so that the command line can list them without loading polars."""

from enum import StrEnum


class FormatName(StrEnum):
    """What `vlm2rec data import` reads."""

    GOOGLE_MERCHANT = "google-merchant"
    AMAZON_2023 = "amazon-2023"
    MOVIELENS = "movielens"
    HM = "hm"
    SHOPIFY = "shopify"
    MIND = "mind"
    POSTGRES = "postgres"
