"""Caveats of an evaluation: what its figures cannot say, in sentences for the log, the answer and the page of a run."""

import logging

from ..config import Evaluate, UserError
from ..runs import registry

log = logging.getLogger(__name__)
# The floor's deviation from one halving of the same images to another, as a share: 0.24 to 0.29 in 100 halvings each of
# 80 to 648 digits, by a lenet's features.
_SPREAD = 0.25
_MORE = {"real": "name a larger split (evaluate.split)", "generated": "generate more (generate.images)"}


def check_images(options: Evaluate, **counts: int) -> None:
    """`UserError` where there are too few images of a side, "real" or "generated", to be measured."""
    for side, count in counts.items():
        if count <= options.neighbours:
            raise UserError(
                f"evaluate.neighbours = {options.neighbours} with {count} {side} images: expected more images than"
                f" neighbours; {_MORE[side]}, or look at fewer neighbours"
            )


def of_samples(counts: tuple[int, int], sampled: tuple[int, int], options: Evaluate) -> list[str]:
    """What is told where fewer images are looked at in pairs than asked for; (real, generated) images, and of those the
    sampled ones.
    """
    sentences = []
    if min(counts) < options.sample:
        sentences.append(
            f"evaluate.sample = {options.sample}: KID, precision and recall are of {sampled[0]} real and {sampled[1]}"
            " generated images, fewer than asked for"
        )
    return sentences


def of_sample_size(sample: int, asked: int, dimensions: int) -> list[str]:
    """What is told where the sample is smaller than asked for, so that the driver's memory holds it."""
    if sample >= asked:
        return []
    return [
        f"evaluate.sample = {asked}: KID, precision and recall are of about {sample} images of each side, of whose"
        f" {dimensions} features the driver holds no more"
    ]


def of_fid(figures: dict) -> list[str]:
    """What is told of an evaluation's FID."""
    real, generated, dimensions = (figures[key] for key in ("real_images", "generated_images", "feature_dimensions"))
    sentences = []
    if min(real, generated) <= dimensions:
        sentences.append(
            f"FID of {real} real and {generated} generated images by {dimensions} features: with no more images than"
            " features it is too high, and compares only with that of as many images"
        )
    if figures["distinguishable"] is False:
        sentences.append(
            f"FID {figures['fid']:.2f} cannot be told from that of real images against real ones,"
            f" {figures['fid_floor']:.2f} (half of them against the other), with {real} real and {generated} generated"
            " images: more images are needed to call it good"
        )
    return sentences


def is_distinguishable(fid: float, floor: float | None) -> bool | None:
    """Whether the FID is above that of two halves of the real images by more than that varies; None where there is no
    such floor.
    """
    return None if floor is None else fid > (1 + _SPREAD) * floor


def warn_of_promotion(root: str, run: str, answer: dict) -> None:
    """Warns where the FID of the run by which `registry.promote` gave this answer says little."""
    reports = registry.evaluations(root).get(run, [])
    by_this = [report for report in reports if (report["step"], report.get("fid")) == (answer["step"], answer["fid"])]
    for sentence in by_this[-1].get("caveats", []) if by_this else ():
        if sentence.startswith("FID"):
            log.warning("promote: version %d of model %r: %s", answer["version"], answer["model"], sentence)
