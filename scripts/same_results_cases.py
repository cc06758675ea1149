"""The grid of `check_same_results.py`: what is trained and asked, and which wrong uses must be refused in the same words.

A case is a name, whether it belongs to `--quick`, and the commands that it runs one after the other in a folder of its own. In
that folder lie `fixtures` (those of the tests), and from the program itself `few` (drawn images of 16 classes), `boxes` (drawn
boxes), and `colours` (images of three colours in folders).
"""

EVERY = "--threads 2 --seed 3 --no-cache"
NANO = f"train --data few --shots 3 --epochs 2 --out run {EVERY}"
VIT = f"train --backbone fixtures/vit --data colours --epochs 2 --batch-size 8 --out run {EVERY}"
CLIP = f"train --backbone fixtures/clip --data colours --epochs 2 --batch-size 8 --out run {EVERY}"
MAP = f"train --backbone fixtures/label-map/vit --data colours --epochs 3 --batch-size 8 --out run {EVERY}"
BOXES = f"train --data boxes --epochs 2 --out run {EVERY}"
SMALL = f"train --backbone fixtures/clip --data boxes --epochs 4 --image-size 32 --out run {EVERY}"

USE = ["eval --model run --data few --json --threads 2", "predict --model run --json --threads 2 few/test/*/*.png"]
USE_COLOURS = ["eval --model run --data colours --json --threads 2", "predict --model run --json --threads 2 colours/blue"]
USE_BOXES = ["eval --model run --data boxes --json --threads 2 --detections found.json",
             "predict --model run --json --threads 2 boxes/test"]
EMBED = "embed --model run --out e.safetensors --threads 2 fixtures/images/a.png fixtures/images/b.png"
INFO = "task info run --json"

METHODS = ("linear zero-shot ncm zs-lp clap tip-adapter tip-adapter-f vpt-shallow vpt-deep vp-pad vp-patch vp-full vp-frame coop "
           "cocoop ivlp maple promptsrc bias lora full").split()
# Those that embed texts beside, or something that no prompt leaves as it was.
FEW_STEPS = {"zero-shot", "ncm", "tip-adapter"}


def nano(method, more=""):
    command = NANO.replace(" --epochs 2", "") if method in FEW_STEPS else NANO
    return f"{command} --method {method} {more}"


def grid():
    """Every case as (name, quick, commands)."""
    cases = []

    def case(name, *commands, quick=False):
        cases.append((name, quick, list(commands)))

    # Data first: everything else reads what is written here, each side its own.
    for name, flags in [("classify", ""), ("shifted", "--style shifted --size 48"), ("detect", "--task detect"),
                        ("pairs", "--task detect --categories pairs")]:
        case(f"data-make-{name}", f"data make shapes --images {24 if 'detect' in flags else 192} --out drawn --seed 5 {flags}", "data info drawn --json",
             quick=name == "detect")
    case("data-convert", "data convert boxes --to yolo --out yolo", "data convert yolo --to voc --out voc",
         "data convert voc --to coco --out coco", *(f"data info {d} --json" for d in ("boxes", "yolo", "voc", "coco", "colours")),
         *(f"data check {d} --json" for d in ("boxes", "yolo", "voc", "coco", "colours", "few")), quick=True)
    case("data-info", "data info shapes --json", "data info few", "data info few --json", "data check few")

    # Every method on the bundled CLIP.
    quick = {"linear", "vpt-shallow", "vpt-deep", "vp-pad", "coop", "ivlp", "lora", "ncm"}
    for method in METHODS:
        use = [INFO] if method in ("zero-shot", "ncm", "full") else [*USE, INFO]
        case(f"nano-{method}", nano(method), *use, quick=method in quick)
    for method in ("vpt-deep", "vp-frame", "bias", "lora"):
        case(f"embed-{method}", nano(method), EMBED)
    for method in ("coop", "cocoop", "ivlp", "maple", "promptsrc"):
        case(f"classes-{method}", f"{CLIP} --method {method}", EMBED,
             "predict --model run --json --threads 2 --classes red,yellow,blue colours/blue", *USE_COLOURS, quick=method == "maple")
    case("shapes", f"train --shots 1 --epochs 1 --out run {EVERY}", "runs show run --json", "runs list . --json")
    case("whole-data", f"train --data few --epochs 2 --method vpt-deep --prompt-tokens 3 --out run {EVERY}")
    case("default-lengths", f"train --backbone fixtures/vit --data colours --out run {EVERY} -q")

    # Settings of a method.
    for name, flags in {
        "deep-first": "--method vpt-deep --prompt-layers first:2",
        "deep-last": "--method vpt-deep --prompt-layers last:1 --prompt-dropout 0",
        "deep-cosine": "--method vpt-deep --head cosine",
        "deep-text": "--method vpt-deep --head text",
        "shallow-text": "--method vpt-shallow --head text --prompt-tokens 4 --prompt-dropout 0.2",
        "linear-cosine": "--method linear --head cosine",
        "linear-text": "--method linear --head text",
        "linear-auto": "--method linear --lr auto",
        "linear-lbfgs": "--method linear --solver lbfgs",
        "linear-lbfgs-l2": "--method linear --solver lbfgs --l2 0.3",
        "pad-cosine": "--method vp-pad --pad 5 --head cosine",
        "patch-random": "--method vp-patch --patch-place random --patch-size 12",
        "frame-inner": "--method vp-frame --inner-size 40 --head text",
        "lora-head": "--method lora --head linear",
        "lora-text": "--method lora --lora-towers text --lora-rank 3 --lora-alpha 2 --lora-dropout 0",
        "lora-image": "--method lora --lora-towers image",
        "bias-cosine": "--method bias --head cosine --head-lr 0.01",
        "full-text": "--method full --head text --weight-decay 0.1",
        "augment": "--method vpt-deep --flip --augment trivial --random-resized-crop 0.5 1",
        "augment-pad": "--method vp-pad --flip --augment trivial",
        "augment-coop": "--method coop --random-resized-crop 0.3 0.9 --no-flip",
        "sgd": "--method vpt-deep --optimizer sgd --lr 0.1 --warmup 0.3 --clip-norm 0.5 --label-smoothing 0.1",
        "weights": "--method vpt-shallow --class-weights inverse-sqrt --select best --patience 1",
        "micro-batch": "--method vpt-deep --micro-batch 5",
        "bf16": "--method vpt-deep --precision bf16",
        "bf16-lora": "--method lora --precision bf16",
        "image-size": "--method vpt-deep --image-size 48",
        "split-seed": "--method linear --split-seed 9",
        "tip-fixed": "--method tip-adapter-f --alpha 2 --beta 3 --views 2",
        "zs-lp-views": "--method zs-lp --views 1",
        "coop-words": "--method coop --context-init 'a photo of'",
        "ivlp-random": "--method ivlp --context-init random --prompt-layers first:2 --prompt-tokens 3",
        "maple-all": "--method maple --prompt-layers all",
        "classnames": "--method zs-lp --classnames names.txt --templates templates.txt",
    }.items():
        command = f"{NANO} {flags}"
        case(f"set-{name}", command.replace(" --epochs 2", "") if "lbfgs" in flags else command, *USE,
             quick=name in {"deep-last", "deep-text", "linear-lbfgs", "lora-head", "augment", "sgd"})
    case("set-auto", f"{VIT} --method vpt-deep --lr auto", quick=True)
    case("set-auto-pad", f"{VIT} --method vp-pad --lr auto")
    case("set-max-memory", f"{VIT} --method vpt-deep --max-memory 60MB")
    case("set-draw", f"{VIT} --method linear --shots 2", VIT.replace("--out run", "--out again") + " --draw run/few_shot.json")

    # Families of backbones.
    for family in ("vit", "deit", "dinov2", "dinov2-registers", "dinov2-swiglu", "mae", "clip", "clip-gelu"):
        train = VIT.replace("fixtures/vit", f"fixtures/{family}")
        case(f"family-{family}", f"{train} --method linear",
             f"embed --backbone fixtures/{family} --out e.safetensors --threads 2 fixtures/images/a.png",
             f"backbones info fixtures/{family} --json", quick=family in ("vit", "dinov2", "deit"))
        for method in ("vpt-deep", "vpt-shallow", "vp-frame", "bias", "lora", "full"):
            case(f"family-{family}-{method}", f"{train} --method {method}", *USE_COLOURS, INFO,
                 quick=(family, method) in {("dinov2", "vpt-deep"), ("deit", "bias"), ("vit", "full"), ("dinov2-registers", "lora")})
        case(f"family-{family}-size", f"{train} --method vpt-deep --image-size 48 --prompt-layers last:1")

    # Label maps.
    for method, kind, family in [("vp-frame", "ilm", "vit"), ("vp-pad", "rlm", "dinov2"), ("vp-patch", "flm", "registers"),
                                 ("vp-full", "blm", "vit"), ("vp-frame", "blm+", "registers"), ("vp-pad", "ilm", "dinov2")]:
        train = MAP.replace("label-map/vit", f"label-map/{family}")
        case(f"map-{method}-{kind}", f"{train} --method {method} --label-map {kind}", *USE_COLOURS, INFO, quick=kind in ("ilm", "blm"))
    case("map-auto", f"{MAP} --method vp-frame --label-map ilm --lr auto --flip")

    # More than one class an image, and boxes.
    for method in ("linear", "vpt-shallow", "vpt-deep", "vp-pad", "bias", "lora", "full"):
        head = " --head linear" if method == "lora" else ""
        case(f"multi-{method}", f"{BOXES} --task multilabel --method {method}{head}",
             *([INFO] if method == "full" else USE_BOXES_CLASSES), quick=method in ("linear", "vpt-deep"))
    case("multi-lora-texts", f"{BOXES} --task multilabel --method lora", INFO)
    case("multi-weights", f"{SMALL} --task multilabel --class-weights balanced --flip --head cosine", *USE_BOXES_CLASSES)
    case("multi-auto", f"{SMALL} --task multilabel --method vpt-shallow --lr auto")
    for method in ("linear", "vpt-shallow", "vpt-deep"):
        case(f"detect-{method}", f"{BOXES} --method {method}", *USE_BOXES, INFO, quick=method != "vpt-shallow")
    for name, flags in {
        "open": "--method linear --open-vocabulary", "open-deep": "--method vpt-deep --open-vocabulary",
        "mosaic": "--method vpt-deep --mosaic 0.5 --box-crop", "mosaic-linear": "--method linear --mosaic 0.3 --flip",
        "letterbox": "--method vpt-deep --fit letterbox --scale-jitter 0.7 1.4 --no-flip",
        "plain": "--method vpt-deep --scale-jitter 1 1 --no-flip --prompt-layers last:1 --head-epochs 1",
        "jitter-none": "--method linear --scale-jitter 1 1 --no-flip --ema 0.5 --clip-norm 0.2",
        "ema": "--method vpt-shallow --ema 0 --head-epochs 0 --weight-decay 0.01 --head-lr 0.005",
        "bf16": "--method vpt-deep --precision bf16", "last": "--method vpt-deep --select last --micro-batch 3",
    }.items():
        case(f"detect-{name}", f"{SMALL} {flags}", *USE_BOXES, quick=name in ("open-deep", "mosaic"))
    case("detect-classes", f"{SMALL} --method linear --open-vocabulary",
         "predict --model run --json --threads 2 --classes circle,star --min-score 0 boxes/test",
         "data make shapes --task detect --categories pairs --images 12 --out pairs", "eval --model run --data pairs --json --threads 2")
    for family in ("vit", "dinov2-registers"):
        case(f"detect-{family}", f"train --backbone fixtures/{family} --data boxes --epochs 3 --out run {EVERY}", *USE_BOXES)
    case("detect-layouts", "data convert boxes --to yolo --out yolo", "data convert boxes --to voc --out voc",
         *(SMALL.replace("--data boxes", f"--data {d}").replace("--out run", f"--out run-{d}") for d in ("yolo", "voc")))

    # Without learning, again, and in a grid.
    case("zero-shot", "zero-shot --data few --json --threads 2", "zero-shot --data few --split val --threads 2 --json",
         "zero-shot --backbone fixtures/clip --data colours --json --threads 2 --templates templates.txt --classnames names3.txt", quick=True)
    case("embed", "embed --out e.safetensors --texts 'a red circle' 'a cat' --threads 2",
         "embed --out f.safetensors --threads 2 --normalize few/test/*circle/*.png --json", quick=True)
    case("again", f"{VIT} --method vpt-deep", "train --resume run --json", "train --config run/config.toml --out again --no-cache",
         "train --config run/config.toml --out more --no-cache --method vp-pad --epochs 1", "runs list . --json", "runs compare run again --json",
         quick=True)
    case("few-shot", "bench few-shot --backbone fixtures/clip --data colours --out grid --epochs 4 --threads 1 --no-cache "
         "--methods zero-shot,linear,vpt-shallow,coop,lora --shots 1,2 --seeds 1,2", "bench merge grid", quick=True)
    case("few-shot-all", "bench few-shot --backbone fixtures/clip --data colours --out grid --epochs 2 --threads 1 --no-cache "
         "--methods all --shots 2 --seeds 1 --schedule quick")
    case("few-shot-new", "bench few-shot --backbone fixtures/clip --data few --out grid --epochs 2 --threads 1 --no-cache "
         "--methods zero-shot,coop,maple --shots 1 --seeds 1 --base-to-new")
    case("few-shot-maps", "bench few-shot --backbone fixtures/label-map/vit --data colours --out grid --epochs 2 --threads 1 --no-cache "
         "--methods linear,vp-frame --label-map blm --shots 2 --seeds 1")
    case("backbones", "backbones list --json", "backbones info clip-nano --json", "backbones verify clip-nano --json")
    return cases


USE_BOXES_CLASSES = ["eval --model run --data boxes --json --threads 2", "predict --model run --json --threads 2 boxes/test"]

# Commands to ask for help.
HELP = ["", "train", "eval", "predict", "embed", "zero-shot", "bench", "bench few-shot", "bench merge", "bench step", "bench detect",
        "bench kernels", "data", "data info", "data check", "data convert", "data make", "data make shapes", "backbones",
        "backbones list", "backbones info", "backbones fetch", "backbones verify", "cache", "cache info", "cache clear", "runs",
        "runs list", "runs show", "runs compare", "runs rm", "task", "task info", "completions", "man"]

MOST = "18446744073709551615"

# Wrong uses, a line each, where a folder `run` of a finished run lies. T is a run on `colours`, D one on `boxes`.
WRONG = f"""
trian
runs lits
train --epoch 3
train --prompt-token 3
predict --modle run a.png
train colours
train --method vpt-depe
train --task detetc
train --method vpt-deap
train --head quadratic
train --optimizer adam
train --select first
train --prompt-layers middle
train --prompt-tokens 0
train --prompt-tokens -3
train --epochs 0
train --epochs many
train --epochs 99999999999999999999999
train --batch-size 0
train --lr fast
train --lr NaN
train --lr 0
train --label-smoothing 1
train --shots 0
train --patience 0
train --pad 8
train --threads 0
train --threads 5000
train --seed -1
train --seed {MOST}
train --device cuda:0
train --device tpu
train --precision f16
train --max-memory much
train --max-memory 1MB
train --random-resized-crop 0.5
train --random-resized-crop 0.9 0.5
train --resume run --epochs 3
train --resume run --config c.toml
train --resume run --seed 3
train --quiet -v
train --backbone resnet50
train --backbone clip-vitb32
train --context-init 'a photo'
train --method maple --prompt-layers last:2 --out r
train --method ivlp --prompt-tokens 31 --out r
train --method coop --context-init one --prompt-tokens 20 --out r
train --method coop --context-init '' --out r
train --data colors
train --data shpaes
train --resume rnu
train --config c.toml
data info colours/gren
bench step --method coop
eval --data colours
eval --model run
eval --model run --data colours --split dev
eval --model run --data colours --split tset
predict --model run
embed --out e.safetensors
embed a.png
embed --out colours a.png
embed --out e --model m --image-size 64 a.png
bench step --backbone fixtures/vit --repeats 0
bench step --backbone fixtures/vit --classes 0
bench step --backbone fixtures/vit --batch-size 0
bench step --backbone fixtures/vit --method linear --prompt-tokens 3
bench step --batch-size {MOST}
bench step --batch-size 1000000000
bench step --classes 1000000000000
bench step --repeats {MOST}
bench step --micro-batch 0
bench step --image-size 16392
bench step --image-size -32
bench step --prompt-tokens 1001
bench detect --backbone fixtures/clip --classes {MOST}
bench detect --backbone fixtures/clip --batch-size {MOST}
bench detect --backbone fixtures/clip --repeats 0
data info
data convert colours --to coco
data convert colours --out new
data convert colours --to kitti --out new
data convert colours --to yollo --out new
data convert colours --to yolo --out new
data make shapes --out new --images 0
data make shapes --out new --images {MOST}
data make shapes --out new --size 0
data make shapes --out new --size 100000
data make shapes --out new --task detect --images 2
data make shapes --out new --categories pairs
data make circles --out new
backbones info NAME
backbones info dinov2-smal
backbones info
backbones info a/b@../c
backbones fetch ../../x
runs list --sort tme
runs show nothing
runs compare run
runs rm nothing
task info rum
task info fixtures/deit/model.safetensors
task info run/checkpoint.safetensors
T --image-size 33
T --prompt-layers first:9
T --prompt-layers last:0
T --prompt-layers first:0
T --prompt-layers last:4
T --prompt-layers first:{MOST}
T --prompt-layers first:
T --method coop
T --method zero-shot
T --method clap
T --epochs {MOST}
T --epochs -1
T --epochs 1e3
T --epochs ''
T --patience -1
T --micro-batch 0
T --prompt-tokens 1001
T --prompt-dropout 1
T --prompt-dropout nan
T --lr inf
T --lr -0.001
T --lr 1e-3x
T --head-lr 0
T --method linear --head-lr 1
T --method linear --flip
T --method linear --augment trivial
T --method linear --prompt-tokens 4
T --method linear --lora-rank 4
T --method linear --l2 1
T --method linear --solver lbfgs --lr 0.1
T --method linear --solver lbfgs --epochs 3
T --method lora --lora-rank 0
T --method lora --lora-alpha 0
T --method lora --lora-dropout 1
T --method lora --lora-towers text
T --method lora --lora-towers both
T --method vpt-deep --lora-rank 2
T --method vpt-deep --views 2
T --method vpt-deep --alpha 1
T --method vpt-deep --solver lbfgs
T --method vpt-deep --label-map ilm
T --method vpt-deep --head text
T --method ncm --epochs 3
T --method ncm --head linear
T --weight-decay -0.1
T --weight-decay nan
T --warmup 1.01
T --warmup -0.5
T --clip-norm 0
T --clip-norm inf
T --label-smoothing -0.1
T --random-resized-crop nan 1
T --random-resized-crop 0 1
T --random-resized-crop 0.5 2
T --method vpt-shallow --prompt-layers all
T --method vp-pad --pad 0
T --method vp-pad --pad 17
T --method vp-pad --pad {MOST}
T --method vp-pad --prompt-tokens 3
T --method vp-pad --prompt-dropout 0.1
T --method vp-patch --patch-size 0
T --method vp-patch --patch-size 33
T --method vp-patch --patch-place middle
T --method vp-frame --inner-size 0
T --method vp-frame --inner-size 32
T --method vp-pad --label-map ilm
T --method vp-pad --label-map blm++
T --image-size 0
T --image-size 18446744073709551608
T --seed 9223372036854775808
T --seed one
T --threads -1
T --box-crop
T --open-vocabulary
T --fit letterbox
T --mosaic 0.3
T --ema 0.9
T --head-epochs 2
T --scale-jitter 1 1
T --task detect
T --task multilabel
T --out ''
T --backbone ''
T --resume run
T --shots 2 --draw x.json
T --draw x.json
T --templates none.txt
T --classnames none.txt
T --alpha 1 --method tip-adapter
D --ema 1
D --ema nan
D --mosaic 1.5
D --mosaic nan
D --scale-jitter 0 1
D --scale-jitter nan nan
D --scale-jitter 2 1
D --scale-jitter 1e-30 1e30
D --head-epochs 4 --epochs 4
D --shots 4
D --method vp-pad
D --method lora
D --method coop
D --head cosine
D --label-smoothing 0.1
D --random-resized-crop 0.5 1
D --augment trivial
D --class-weights balanced
D --task classify
D --task multilabel --shots 3
D --task multilabel --label-smoothing 0.1
D --task multilabel --box-crop
D --task multilabel --method coop
D --task multilabel --method linear --solver lbfgs
D --method linear --solver lbfgs
D --task multilabel --method ncm
D --task multilabel --method zs-lp
D --task segment
D --image-size 33
train --backbone fixtures/vit --data boxes --out new --open-vocabulary
train --backbone fixtures/clip --data colours --out new --method vp-frame --label-map ilm
train --backbone fixtures/dinov2 --data colours --out new --method vp-frame --label-map ilm
train --backbone fixtures/deit --data colours --out new --method vp-frame --label-map ilm
train --backbone fixtures/label-map/vit --data colours --out new --method vp-frame --label-map ilm --head cosine
train --backbone fixtures/label-map/vit --data colours --out new --method vp-frame --label-map ilm --head-lr 0.1
predict --model run --min-score nan fixtures/images/a.png
predict --model run --min-score -1 fixtures/images/a.png
predict --model run --min-score 0.5 fixtures/images/a.png
predict --model run --classes a,b fixtures/images/a.png
predict --model run --backbone fixtures/clip --threads 1025 fixtures/images/a.png
predict --model run --backbone fixtures/clip fixtures/images/a.png
predict --model run nothing.png
predict --model run names.txt
eval --model run --data colours --detections d.json
eval --model run --data boxes
eval --model rum --data colours
zero-shot --backbone fixtures/vit --data colours
zero-shot --backbone fixtures/clip --data colours --image-size 7
embed --backbone fixtures/vit --out e --texts 'a dog'
embed --backbone fixtures/vit --out e --image-size 12 fixtures/images/a.png
embed --backbone fixtures/vit --out e nothing.png
bench few-shot --backbone fixtures/vit --data colours --out out --methods zero-shot
bench few-shot --data colours --out out --methods liner
bench few-shot --data colours --out out --methods linear --epochs 0
bench few-shot --data colours --out out --methods linear --base-to-new
bench few-shot --data colours --out out --methods linear --cross shapes
bench few-shot --data colours --out out --methods linear --classnames names.txt
bench few-shot --data colours --out out --methods linear --label-map ilm
bench few-shot --data colours --out out --methods vp-pad --label-map ilm
bench few-shot --data colours --out out --methods linear --shots 0
bench few-shot --data colours --out out --methods linear --shard 3/2
bench merge colours
completions tcsh
--json
train --json=yes
train --seed
train --seed 1 --seed 2
data info ''
data check ''
data check nowhere
runs show ''
task info ''
"""


def wrong():
    """The commands of `WRONG`, written out."""
    lines = []
    for line in WRONG.strip().splitlines():
        first, _, rest = line.partition(" ")
        if first == "T":
            line = f"train --backbone fixtures/vit --data colours --out new {rest}"
            for flag in ("--out ''", "--backbone ''"):
                if flag in rest:
                    line = line.replace(f" {flag.split()[0]} {'new' if 'out' in flag else 'fixtures/vit'}", "", 1)
        elif first == "D":
            line = f"train --backbone fixtures/clip --data boxes --out new {rest}"
        lines.append(line)
    return lines
