"""The notes in the manifest of a prepared folder, and the errors of an empty split."""

from collections.abc import Iterator

from lmsmith.data.manifest import SPLITS, SplitRecord
from lmsmith.data.prepare.assemble import Summary
from lmsmith.data.prepare.dedup import Near
from lmsmith.data.prepare.plan import Plan
from lmsmith.errors import DataError
from lmsmith.text import separators
from lmsmith.text.files import plural
from lmsmith.text.skipping import skipped_note


def check_large(plan: Plan) -> None:
    """Raises DataError if large files leave one split empty. Their split is known before encoding;
    that of other files only after it.
    """
    sides = {piece.split for unit in plan.units for piece in unit}
    for side, name in enumerate(SPLITS):
        if sides == {side}:
            raise _one_sided(
                plural(len(plan.files), "file"), "train" if name == "val" else "val", plan
            )


def check_sides(splits: dict[str, SplitRecord], plan: Plan, summary: Summary) -> None:
    n_documents = splits["train"].n_documents + splits["val"].n_documents
    if not n_documents:
        sentences = [
            f"there is no text in the {plural(len(plan.files), 'file')}.",
            *summary.counts.notes(),
            *_skipped(summary),
        ]
        raise DataError(" ".join([*sentences, "Name files with text."]))
    for name in SPLITS:
        if not splits[name].n_tokens:
            raise _one_sided(
                plural(n_documents, "document"), name, plan, "remove the unfinished folder, then "
            )


def _one_sided(text: str, empty: str, plan: Plan, first: str = "") -> DataError:
    kind, change = ("training", "smaller") if empty == "train" else ("validation", "larger")
    if plan.n_validation_units:
        files = "SOURCE" if empty == "train" else "--validation"
        return DataError(f"none of {text} is for {kind}: {first}name files with text for {files}.")
    return DataError(
        f"none of {text} is for {kind} at --validation-fraction {plan.reading.fraction:g}: "
        f"{first}choose a {change} one, or add text."
    )


def notes_on(
    plan: Plan, splits: dict[str, SplitRecord], summary: Summary, n_dropped: int, near: Near | None
) -> Iterator[str]:
    """Yields sentences about results that may surprise the user."""
    fraction, n_held_out = plan.reading.fraction, splits["val"].n_documents
    if plan.n_validation_units:
        yield (
            f"the {plural(n_held_out, 'document')} of --validation are for validation, the "
            f"{plural(splits['train'].n_documents, 'document')} of SOURCE for training."
        )
    elif plan.reading.by_document:
        yield (
            f"{n_held_out:,} of {n_held_out + splits['train'].n_documents:,} documents are for "
            f"validation: those whose content hash is below {fraction:g}. With the same "
            "--validation-fraction, each document stays in its split when files are added."
        )
    else:
        whose = "the text" if n_held_out == 1 else f"each of {n_held_out} documents"
        yield (
            f"the last {100 * fraction:.4g}% of {whose} is for validation. It directly continues "
            "the training text, so it is easier to predict than a separate text."
        )
    if near is not None:
        yield (
            f"{plural(n_dropped, 'near duplicate')} dropped, {near[1]:,} of them from training "
            "because of a document in validation."
        )
    elif n_dropped:
        yield f"{plural(n_dropped, 'exact duplicate')} dropped."
    yield from plan.notes
    if plan.reading.separator not in ("", separators.END_OF_TEXT) and not summary.counts.separators:
        yield (
            f"no plain text file contains the separator {plan.reading.separator!r}, so each is "
            "one document."
        )
    yield from summary.counts.notes()
    n_unknown = {name: split.n_unknown for name, split in splits.items()}
    if any(n_unknown.values()):
        yield (
            f"{sum(n_unknown.values()):,} characters or words are not in the vocabulary: "
            f"{n_unknown['train']:,} in the training text, {n_unknown['val']:,} in the "
            "validation text."
        )
    yield from _skipped(summary)


def _skipped(summary: Summary) -> Iterator[str]:
    if summary.n_skipped:
        yield skipped_note(summary.n_skipped, summary.skipped)
