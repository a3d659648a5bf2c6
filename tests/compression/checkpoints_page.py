"""Write docs/checkpoints.md: ``python tests/compression/checkpoints_page.py``.

Every kind of the table is made by its own library, loaded, and compared; every refused one is refused, in the words of
the page.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "checkpoints.md"
sys.path[:0] = [str(TESTS / "helpers"), str(TESTS / "compression")]

from checkpoint_kinds import KINDS, Kind, Outcome, outcome  # noqa: E402

_HEAD = """\
# Checkpoints

`--weights` takes what teams have: a file, or a folder. `tocom export`, `evaluate` and `train` read it alike. One line
says what was taken: which set of weights, under which prefix, what was left out, and how positions were resampled.
Nothing of a file is executed: pickles are read with `weights_only`, and of classes only `argparse.Namespace`, in which
`timm/train.py` keeps its arguments, is let in.

This table is made by `python tests/compression/checkpoints_page.py` from `tests/compression/checkpoint_kinds.py`: each
checkpoint is written small, by the library that it comes from or by that library's names, loaded, and its outputs are
within 1e-5 of that library's; a test does the same on every change. Do not edit it by hand. *name* says whether the
checkpoint says which model it is; where it does not, pass timm's name with `--model`.

| from | kind | name | what the line says |
| --- | --- | --- | --- |
"""
_MIDDLE = """
## Refused
| from | kind | the error |
| --- | --- | --- |
"""
_TAIL = """
## What is read
- **Weights.** timm's own cleaning and `checkpoint_filter_fn` come first, so whatever timm loads is loaded, with patches
  and positions resampled to `--image-size` as timm does it. Where a file holds several sets, averaged ones (EMA,
  teacher) are taken before others, and the line says which were not; `--weights-key state_dict` takes another set. Half
  precision becomes float32.
- **The name.** Where a checkpoint says its sizes but no timm name has them, a name of the family stands for it, and the
  sizes are the checkpoint's.
- **Preprocessing** is part of the model. Each value comes from the first that states it: the options `--mean`, `--std`,
  `--interpolation`, `--crop` and `--crop-mode`; `preprocessor_config.json`; the arguments or the `pretrained_cfg` in
  the checkpoint; `open_clip_config.json`; what the family is known for; timm's config of the name. `export`, `evaluate`
  and `inspect` print every value with where it comes from; the manifest keeps it in `input.sources`. Images are
  prepared bit for bit as timm's evaluation transform prepares them: Hugging Face's crop of an odd margin begins one
  pixel earlier, and open_clip fills a border black, timm with the mean.
- **Classes**: as many as the head has; `--num-classes 0` leaves the head out. Names come from `id2label`, timm's
  `label_names`, a safetensors file's `labels`, or `--labels FILE`: text with one name per line, or JSON. `tocom relabel
  BUNDLE --labels FILE` changes them later.
- **Other models of the same kind**: `--image-size 224,448` (height, width), `--in-chans 1` with `--mean` and `--std` of
  as many values, `--model-kwargs global_pool=avg qk_norm=true` for any option of timm's `create_model`.
- **Adapters**: a LoRA of peft is merged with `--adapter FOLDER` into the weights that it was trained on, timm's or
  Hugging Face's. Other kinds are refused by name.
- **In Python**, `tocom.export.export` takes timm's models also within DataParallel, DistributedDataParallel and
  `torch.compile`, in half precision, and torchvision's and transformers' modules; a `LoadedModel` may carry its own
  `input_entry` and `labels`. What it cannot export it refuses before any file is written.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page, having made, loaded and compared every kind."""
    taken, refused = [], []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = outcome(kind, Path(folder))
        row = [kind.library, kind.what]
        if kind.refusal:
            refused.append([*row, _plain(result, folder)])
        else:
            taken.append([*row, "yes" if result.says_name else "no", _plain(result, folder)])
    return _HEAD + _rows(taken) + _MIDDLE + _rows(refused) + _TAIL


def _rows(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _plain(result: Outcome, folder: str) -> str:
    """Return the words without the place that this run used; a bar would end the cell."""
    return re.sub(rf"{re.escape(folder)}/?", "", result.words).replace("|", "\\|").replace("<", "&lt;")


__all__ = ["KINDS", "PAGE", "Kind", "page"]

if __name__ == "__main__":
    main()
