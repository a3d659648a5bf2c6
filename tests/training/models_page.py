"""Write docs/models.md from the table that the tests of supported families go through.

    python tests/training/models_page.py

Every model named as supported is built small, run dense, merged, pruned and pruned with fusing; every refused one is
built, and its refusal is what the page says.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "models.md"
sys.path.insert(0, str(TESTS / "helpers"))

import timm  # noqa: E402
import torch  # noqa: E402
from families import FAMILIES, REFUSED, Family  # noqa: E402
from small_vits import small_images  # noqa: E402

from tocom import compress  # noqa: E402
from tocom.errors import ModelError  # noqa: E402

_HEAD = """\
# Models

Made by `python tests/training/models_page.py` from `tests/helpers/families.py`; a test compares this page with what
the script writes. Do not edit it by hand.

## Supported
Any timm model of class `VisionTransformer` or `Eva` (rotary positions) whose blocks hold one attention followed by one
MLP: any patch size, image size, width and depth. The tests build each of these small, with random weights, and check
that degree 0 equals timm's output bit for bit, that token counts are as predicted, and that a merged compensator equals
one beside the weights, for merging and for pruning; this page is made by running each, and pruning with fusing, once
more. timm makes DINOv3 for any image size; by its name, `--model`, tocom creates it for one; all names that timm has of
it run small, and a file with the names of Meta's own is read. `--patch-features` is for all but those whose last norm
stands behind the pooling (timm's `fc_norm`, such as EVA-02's with average pooling): no patch has normed features there.

| family | timm name | protected tokens | pooling | options of the test |
| --- | --- | --- | --- | --- |
"""
_POOLING = {"token": "class token", "avg": "average", "map": "attention"}


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page, having run what it says."""
    torch.set_num_threads(1)
    rows = [_supported(family) for family in FAMILIES]
    refused = [
        f"| `{entry.name}` | {_options(entry.options)} | {_refusal(entry.name, entry.options)} |" for entry in REFUSED
    ]
    return "\n".join(
        [
            _HEAD + "\n".join(rows),
            "\nNot the real weights: what a family's weights do at a degree is to be measured with `tocom evaluate`.",
            "\n## Refused\n| timm name | options of the test | the error |\n| --- | --- | --- |\n" + "\n".join(refused),
            "",
        ]
    )


def _supported(family: Family) -> str:
    model = family.build()
    images = small_images(model, 1)
    with torch.inference_mode():
        dense = model(images)
        if not torch.equal(compress(model, 0)(images), dense):
            raise SystemExit(f"{family.name}: degree 0 is not the dense model")
        for options in ({"method": "merge"}, {"method": "prune"}, {"method": "prune", "fuse": True}):
            output = compress(model, 4, **options)(images)  # type: ignore[arg-type]
            if output.shape != dense.shape or not output.isfinite().all() or torch.equal(output, dense):
                raise SystemExit(f"{family.name}: {options} does not work")
    return (
        f"| {family.group} | `{family.name}` | {model.num_prefix_tokens} | {_POOLING[model.global_pool]} | "
        f"{_options(family.options)} |"
    )


def _refusal(name: str, options: dict[str, object]) -> str:
    try:
        compress(timm.create_model(name, pretrained=False, **options), 1)
    except ModelError as error:
        return str(error)
    raise SystemExit(f"{name} is said to be refused, but is not")


def _options(options: dict[str, object]) -> str:
    # Sizes that make a model small say nothing of what is supported.
    telling = {
        name: value
        for name, value in options.items()
        if name not in ("depth", "depths", "embed_dim", "num_heads", "num_kv_heads")
    }
    return ", ".join(f"`{name}={value!r}`" for name, value in telling.items()) or "–"


if __name__ == "__main__":
    main()
