"""Faults of the field by their own commands: each as a user would type it into a shell, in a folder of its own.

What every kind needs besides is tested where its code is (``test_field.KINDS``).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

SET_UP = """
X="tocom export --model test_vit3 --num-classes 3 --no-check --overwrite"
"""
BUNDLES = """
set -e
$X --weights random --degrees 0,4,8 --out b
python -c "
import numpy as np,os;from PIL import Image
for c in('bolt','nut','washer'):
  os.makedirs('ds/'+c,exist_ok=True)
  for i in(0,1):Image.fromarray(np.random.randint(0,255,(60,60,3),dtype='u1')).save(f'ds/{c}/{i}.png')"
printf 'bolt\\nnut\\nwasher\\n'>l.txt; $X --weights random --degrees 0 --labels l.txt --out bl
"""
# What root may do, and other users may not.
UNPRIVILEGED = "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all"
CANNOT = 77


class Case(NamedTuple):
    """A user's commands, and what must come of them.

    Attributes:
        script: For bash; its last command's code is the case's.
        says: Patterns that are found in what it prints, in this order, on both streams.
        code: Exit code.
        without: Patterns that are not found there.
    """

    script: str
    says: tuple[str, ...] = ()
    code: int = 0
    without: tuple[str, ...] = ()


CASES = {
    "a cold cache, four processes": Case(
        "for i in 1 2 3 4; do (TOCOM_CACHE=$PWD/cold tocom run b --images ds/nut/0.png; echo rc=$?) & done; wait",
        ("rc=0", "rc=0", "rc=0", "rc=0"),
        without=("rc=1", "was changed", "do not share"),
    ),
    "SIGTERM, whose handler closes": Case(
        """
cat >serve.py <<'END'
import signal, sys
import numpy as np
from tocom.runtime import Runtime
runtime = Runtime.open("b")
images = np.zeros((1, *runtime.bundle.image_shape), np.float32)
def end(*_):
    runtime.stats(); runtime.close(); sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True: runtime.infer(images)
END
python serve.py >ready & process=$!
until grep -q ready ready; do sleep 0.1; done
sleep 0.3; kill -TERM $process; wait $process""",
    ),
    "a configuration that squashes": Case(
        """
M=vit_base_patch16_clip_384.laion2b_ft_in12k_in1k
tocom export --model $M --weights random --degrees 0 --no-check --out squash || exit
python -c "
import numpy as np, timm; from PIL import Image; from timm.data import create_transform, resolve_data_config
from tocom.formats.bundle import Bundle; from tocom.images import read_image
want = create_transform(**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg('$M').to_dict()))
entry = Bundle('squash').manifest['input']
for size in ((300, 500), (500, 300), (384, 384), (77, 900)):
  Image.fromarray(np.random.randint(0, 256, (*size, 3), dtype='u1')).save('any.png')
  print('equal', np.array_equal(want(Image.open('any.png')).numpy(), read_image('any.png', entry)))"
rm -rf squash""",
        ("crop mode squash", "equal True", "equal True", "equal True", "equal True"),
        without=("False",),
    ),
    "a photograph with EXIF orientation 6": Case(
        """
python -c "
import numpy as np; from PIL import Image
stored = Image.fromarray(np.random.randint(0, 255, (40, 60, 3), dtype='u1')); exif = Image.Exif(); exif[274] = 6
stored.save('turned.png', exif=exif); stored.transpose(Image.Transpose.ROTATE_270).save('upright.png')"
for i in turned upright; do tocom run bl --images $i.png --json --topk 3 | grep -E '"(label|probability)"' >$i; done
cmp turned upright && test -s turned && echo alike""",
        ("alike",),
    ),
    "an int32 TIFF": Case(
        """python -c "
import numpy as np;from PIL import Image
Image.fromarray(np.random.randint(0,256,(60,60)).astype('i4')).save('i32.tif')"; tocom run bl --images i32.tif""",
        (r"error: DataError: .*i32.tif: signed and 32-bit integer pixels have no agreed range; store 8 or 16 bits",),
        1,
    ),
    "labels with a byte order mark": Case(
        r"""
printf '\xef\xbb\xbfbolt\nnut\nwasher\n'>lbom.txt; $X --weights random --degrees 0 --labels lbom.txt --out bom || exit
tocom inspect bom --json | python -c "import json,sys; print(json.load(sys.stdin)['labels'])"
tocom calibrate bom --images ds --samples 3""",
        (r"\['bolt', 'nut', 'washer'\]",),
    ),
    "a subfolder that is a link": Case(
        """
mkdir dl; ln -s ../ds/nut dl/nut; cp -r ds/bolt dl/
tocom run bl --images dl --json | grep '"image"'""",
        ("dl/bolt/0.png", "dl/bolt/1.png", "dl/nut/0.png", "dl/nut/1.png"),
    ),
    "classes that are not the model's": Case(
        """
mkdir -p dw/cat dw/dog; cp ds/nut/0.png dw/cat; cp ds/nut/1.png dw/dog
tocom calibrate b --images dw --samples 3; echo rc=$?; tocom calibrate bl --images dw --samples 3""",
        (
            r"holds 2 class folders \(cat, dog\), the model has 3 classes and no labels: which is which is not known",
            "rc=1",
            "the folder 'cat' is not a label of the model. It has: bolt, nut, washer",
        ),
        1,
        without=("accuracy",),
    ),
    "several sets of weights in one file": Case(
        """
python -c "
import timm, torch
sets = {k: timm.create_model('test_vit3', num_classes=3).state_dict() for k in ('state_dict', 'state_dict_ema')}
torch.save({'arch': 'test_vit3', **sets}, 'two.pth')"
$X --weights two.pth --degrees 0 --out two && $X --weights two.pth --weights-key state_dict --degrees 0 --out two""",
        (r"averaged \(EMA\) weights[^.]* under state_dict_ema", "not those under state_dict", "under state_dict"),
    ),
    "keys with module.": Case(
        """
python -c "
import timm, torch
state = timm.create_model('test_vit3', num_classes=3).state_dict()
torch.save({'module.' + k: v for k, v in state.items()}, 'm.pth'); torch.save(state, 'plain.pth')"
for i in m plain; do
  $X --weights $i.pth --degrees 0 --out $i || exit
  tocom run $i --images ds --json --topk 3 | grep probability >$i.says; done
cmp m.says plain.says && test -s m.says && echo alike""",
        ("alike",),
    ),
    "timm/train.py's file": Case(
        """
python -c "
import argparse, timm, torch
model = timm.create_model('test_vit3', num_classes=3)
torch.save({'arch': 'test_vit3', 'epoch': 3, 'state_dict': model.state_dict(), 'args': argparse.Namespace(
    model='test_vit3', num_classes=3, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_pct=0.8)}, 'last.pth.tar')"
tocom export --weights last.pth.tar --degrees 0 --no-check --out t || exit
tocom inspect t --json | tr -d ' \\n'""",
        (r'"mean":\[0\.1,0\.2,0\.3\]',),
        without=(r"\x1b",),
    ),
    "DINOv2's own file, 518 pixels, at 224": Case(
        """
python -c "
import timm, torch
model = timm.create_model('vit_small_patch14_dinov2', num_classes=0)
torch.save({**model.state_dict(), 'mask_token': torch.zeros(1, 384)}, 'dinov2_vits14_pretrain.pth')"
tocom export --model vit_small_patch14_dinov2 --weights dinov2_vits14_pretrain.pth --image-size 224 --degrees 0 \\
  --no-check --out d; code=$?; rm -rf d dinov2_vits14_pretrain.pth; exit $code""",
        ("positions 37×37 → 16×16",),
    ),
    "models handed to export()": Case(
        """
cat >handed.py <<'END'
import os, timm, torch
from tocom.errors import ModelError
from tocom.export import export
class Adapter(torch.nn.Module):
    def __init__(self, inner):
        super().__init__(); self.inner, self.more = inner, torch.nn.Linear(inner.in_features, inner.out_features)
    def forward(self, x): return self.inner(x) + self.more(x)
def model(**more): return timm.create_model("test_vit3", num_classes=3, **more).eval()
adapted = model(); adapted.blocks[0].attn.qkv = Adapter(adapted.blocks[0].attn.qkv)
handed = {"compiled": torch.compile(model(), backend="eager"), "half": model().half(), "adapter": adapted,
          "wrapped": torch.nn.DataParallel(model()), "one channel": model(in_chans=1)}
for name, each in handed.items():
    try:
        export(each, degrees=[0], out="handed-" + name, check=False); said = "exported"
    except ModelError as error:
        said = "ModelError: " + str(error)
    print(name, "|", said, "|", "there" if os.path.exists("handed-" + name) else "nothing there", flush=True)
END
python handed.py""",
        (
            r"compiled \| exported \| there",
            r"half \| exported \| there",
            r"adapter \| ModelError: [^\n]*qkv[^\n]*Adapter[^\n]* \| nothing there",
            r"wrapped \| exported \| there",
            r"one channel \| ModelError: [^\n]*1 channels, but its mean has 3 values[^\n]*--mean[^\n]*\| nothing there",
        ),
    ),
    "one truncated JPEG among seven": Case(
        """
cp -r ds dt; python -c "
import numpy as np;from PIL import Image
Image.fromarray(np.random.randint(0,255,(60,60,3),dtype='u1')).save('dt/nut/2.jpg'); d=open('dt/nut/2.jpg','rb').read()
open('dt/nut/2.jpg','wb').write(d[:len(d)//3])"
tocom run bl --images dt --json >t.json; echo rc=$?
python -c "
import json; answers = json.load(open('t.json'))['answers']
print(len(answers), [each['image'] for each in answers if 'error' in each])"
tocom run bl --images dt --json --skip-unreadable >t.json""",
        ("rc=1", r"7 \['dt/nut/2.jpg'\]"),
    ),
    "a PNG of 1 × 60000": Case(
        """
python -c "from PIL import Image;Image.new('L',(1,60000)).save('line.png')"
(ulimit -v 8000000; tocom run bl --images line.png)""",
        ("Cannot read the image line.png: of 1 x 60000 pixels .* crop the image first",),
        1,
    ),
    "._0.png of another system": Case(
        "cp -r ds dh; echo junk > dh/nut/._0.png; tocom calibrate bl --images dh --samples 3", ("accuracy",)
    ),
    "six images for batches of four": Case(
        """
$X --weights random --degrees 0 --batch 4 --labels l.txt --out b4 || exit
tocom calibrate b4 --images ds --samples 3 --json | tr -d ' \\n'; tocom run b4 --images ds""",
        ('"count":6', "washer/1.png"),
    ),
    "a mounted volume": Case(
        f"""
mkdir volume; unshare -m bash -c "mount -t tmpfs none volume || exit {CANNOT}
$X --weights random --degrees 0 --out volume && ls volume/bundle.json" """,
        ("volume/bundle.json",),
        without=("another process",),
    ),
    "the folder one is in": Case(
        "mkdir here; cd here; $X --weights random --degrees 0 --out . && ls bundle.json", ("bundle.json",)
    ),
    "a file system that syncs no folders": Case(
        f"""
which cc || exit {CANNOT}
cat >sync.c <<'END'
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int fsync(int descriptor) {{
    struct stat status;
    if (fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {{ errno = EINVAL; return -1; }}
    return syscall(SYS_fsync, descriptor);
}}
END
cc -shared -fPIC -o sync.so sync.c; export LD_PRELOAD=$PWD/sync.so TOCOM_CACHE=$PWD/synced
$X --weights random --degrees 0 --out unsynced && tocom run unsynced --images ds/nut""",
        ("nut/1.png",),
        without=("do not share",),
    ),
    "~/.cache of another user": Case(
        f"""
which setpriv || exit {CANNOT}
mkdir -p closed/.cache; chmod 0 closed/.cache; unset TOCOM_CACHE XDG_CACHE_HOME
HOME=$PWD/closed {UNPRIVILEGED} tocom run b --images ds/nut; code=$?; chmod 755 closed/.cache; exit $code""",
        ("nut/1.png",),
    ),
    "a bundle that may only be read, calibrated": Case(
        f"""
which setpriv || exit {CANNOT}
cp -r b ro; chmod 555 ro; {UNPRIVILEGED} tocom calibrate ro --samples 3; code=$?; chmod 755 ro; exit $code""",
        ("the figures are shown, not saved", "p95", "error: OutputError: Cannot write"),
        1,
    ),
    "a bundle laid out as links": Case(
        """
mkdir snap; for f in b/*; do ln -s $PWD/$f snap/; done; tocom run snap --images ds/nut; echo rc=$?
cp -rL snap COPY; tocom run COPY --images ds/nut""",
        ("snap: bundle.json is a link out of the bundle.* cp -rL snap COPY", "rc=1", "nut/1.png"),
    ),
    "names that are not UTF-8, and brackets": Case(
        r"""
mkdir -p '[bold]names:smile:/[' '['; cp ds/nut/0.png '[bold]names:smile:'/$(printf 'caf\xe9').png
cp ds/nut/1.png '[bold]names:smile:/[/red].png'; cp -r bl '[/x]bundle'
for e in utf-8 latin-1 ascii; do
  PYTHONIOENCODING=$e tocom run '[/x]bundle' --images '[bold]names:smile:' || exit
  PYTHONIOENCODING=$e tocom run '[/x]none' --images '[bold]names:smile:'; done
LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 tocom run '[/x]bundle' --images '[bold]names:smile:'""",
        (r"\[bold\]names:smile:/\[/red\]\.png", r"error: BundleError: .*\[/x\]none"),
    ),
    "a CPU quota": Case(
        f"""
for root in /sys/fs/cgroup/cpu /sys/fs/cgroup; do
  group=$root/field-commands-$$
  if mkdir $group 2>/dev/null; then
    (echo 100000 >$group/cpu.cfs_period_us && echo 100000 >$group/cpu.cfs_quota_us) 2>/dev/null ||
      (echo '100000 100000' >$group/cpu.max) 2>/dev/null && made=$group && break; rmdir $group; fi; done
test -n "$made" || exit {CANNOT}
bash -c "echo \\$\\$ >$made/cgroup.procs && tocom bench b --degrees 0 --duration 0.3 --json" ; rmdir $made""",
        ('"threads": 1,',),
    ),
    "/dev/shm of 1 MiB": Case(
        f"""
unshare -m bash -c "mount -t tmpfs -o size=1m none /dev/shm || exit {CANNOT}
tocom train --model test_vit3 --num-classes 3 --weights random --images ds --out c.safetensors --workers 2 --steps 4 \\
  --batch-size 16 --groups 4" """,
        (r"error: TrainingError: .*shared memory.*--shm-size=1g\), or pass --workers 0",),
        1,
    ),
    "nothing is written into the home": Case(
        """
mkdir home; unset XDG_CACHE_HOME CI ORT_DISABLE_TELEMETRY ORT_TELEMETRY_DISABLED
HOME=$PWD/home tocom run bl --images ds/nut/0.png; echo "files: $(find home -mindepth 1)." """,
        ("files: \\.",),
    ),
    "five subsets of degrees": Case(
        """
export TOCOM_CACHE=$PWD/subsets
python -c "
from tocom.runtime import Runtime
for degrees in ([0], [4], [8], [0, 4], [0, 4, 8]): Runtime.open('b', degrees=degrees).close()"
echo "caches: $(find subsets/onnxruntime -mindepth 1 -maxdepth 1 -type d | wc -l)" """,
        ("caches: 1",),
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles and images of the examples."""
    if not Path(sys.executable).with_name("tocom").exists():
        pytest.skip("tocom is not installed as a command here")
    folder = tmp_path_factory.mktemp("field")
    code, said = bash(folder, BUNDLES)
    assert code == 0, said
    return folder


@pytest.fixture
def own(place: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder of a case's own, with links to what all share."""
    for shared in place.iterdir():
        shutil.copytree(shared, tmp_path / shared.name) if shared.is_dir() else shutil.copy(shared, tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def bash(folder: Path, script: str) -> tuple[int, str]:
    """Run a script as a user's shell does, all that it started ended with it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "400"}
    environment |= {"TOCOM_CACHE": str(folder / "cache"), "HOME": str(folder)}
    process = subprocess.Popen(
        ["bash", "-c", SET_UP + script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said.decode(errors="replace")


@pytest.mark.parametrize("name", CASES)
def test_a_users_commands(own: Path, name: str) -> None:
    case = CASES[name]
    code, said = bash(own, case.script)
    if code == CANNOT:
        pytest.skip("this machine cannot be set up so")
    assert "Traceback" not in said, said
    at = 0
    for pattern in case.says:
        found = re.compile(pattern, re.DOTALL).search(said, at)
        assert found, (pattern, said)
        at = found.end()
    for pattern in case.without:
        assert not re.search(pattern, said), (pattern, said)
    assert code == case.code, said
