"""Defines every curve of the report: its series, its axis and its meaning in words."""

from index.evaluation.plots import CurveSpec
from training.config.types import MODALITIES
from training.finetune.validation import METRIC


def _each(family: str) -> dict[str, str]:
    return {f"{family} {modality}": modality for modality in MODALITIES}


VALIDATION = CurveSpec(
    "NDCG@10 on held-out events",
    "How high the item that a user really took next is ranked among all, by both modalities together and by each "
    "alone: 1 is always first, 0 is never in the first ten. Higher is better.",
    {METRIC: "both", **_each(METRIC)},
    around=(0.0,),
)
ALONE = CurveSpec(
    VALIDATION.title,
    "How high the item that a user really took next is ranked among all: 1 is always first, 0 is never in the first "
    "ten. Higher is better.",
    {METRIC: "validation"},
    around=(0.0,),
)
BALANCE = (
    CurveSpec(
        "Lead of the text",
        "Moving average of log c(text) − log c(image), where c is the probability that a modality gives the right "
        "next item within its batch.",
        {"lead": "lead"},
        rule=0.0,
        above="the text is ahead",
        below="the image is",
    ),
    CurveSpec(
        "Confidence",
        "Mean log c of each modality: how sure it is of the right next item within the batch. At most 0; higher is "
        "better.",
        _each("confidence"),
    ),
    CurveSpec(
        "Gap",
        "Mean distance |log c(text) − log c(image)|, clipped at 4. Near 0 both are equally sure.",
        {"gap": "gap"},
        around=(0.0,),
    ),
    CurveSpec(
        "Rows in which the image is weaker",
        "Share of the pairs that the text tells better than the image does.",
        {"image_weak": "share"},
        around=(0.0, 1.0),
        rule=0.5,
        above="the image is the weaker one",
        below="the text is",
    ),
    CurveSpec(
        "Gradient by modality",
        "Norm of the loss's gradient on the vectors of each modality: how much it is still taught. A modality that "
        "is given up fades here first.",
        _each("gradient"),
        around=(0.0,),
    ),
    CurveSpec(
        "Gradient by part of the model",
        "Norm of the gradient on the weights, before clipping.",
        {"gradient language model": "language", "gradient vision tower": "vision"},
        around=(0.0,),
    ),
    CurveSpec(
        "Effective rank",
        "How many directions the items' vectors really use (Roy and Vetterli, 2007). 1 means that all lie on one line: "
        "the modality has collapsed.",
        _each("effective rank"),
        around=(1.0,),
    ),
    CurveSpec(
        "Uniformity",
        "How evenly the items' vectors are spread (Wang and Isola, 2020). 0 means that all are the same; lower is more "
        "even.",
        _each("uniformity"),
        around=(0.0,),
    ),
    CurveSpec(
        "Cross-modal gap",
        "Distance between the centres of the text and the image vectors (Liang et al., 2022), 0 to 2. Not bad in "
        "itself: each modality may have a region of its own.",
        {"cross-modal gap": "gap"},
        around=(0.0,),
    ),
)
TRAINING = (
    CurveSpec(
        "Loss", "What training makes smaller: the sum of the terms below, each with its weight.", {"loss": "loss"}
    ),
    CurveSpec(
        "InfoNCE", "Loss of the fused similarity: minus the log of the probability of the right item.", {"nce": "nce"}
    ),
    CurveSpec("WPCL", "The same by each modality alone, with more weight on the one that is behind.", {"wpcl": "wpcl"}),
    CurveSpec(
        "CRTR", "How differently the two modalities see which items are alike. Lower is more alike.", {"crtr": "crtr"}
    ),
    CurveSpec(
        "Learning rate",
        "AdamW's step size: up during the warm-up, then down.",
        {"learning_rate": "rate"},
        around=(0.0,),
    ),
    CurveSpec(
        "Gradient",
        "Norm of the whole gradient before clipping. Spikes are batches that the model did not expect.",
        {"gradient_norm": "norm"},
        around=(0.0,),
    ),
)
