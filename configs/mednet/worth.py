"""Is pretraining worth it? Random against pretrained weights, by how many labels there are.

  python -m medjax.main --config=configs/mednet/worth.py:covid_ct --workdir=runs/worth_covid_ct

A Gray- or Color-MedNet learns by SimCLR from a pool; before that, images of the pool that show what
the target is scored on are taken out and counted. Then it is fine-tuned on shares of the target's
labels, as is the same network from random weights, by the same recipe, with three seeds each; a
seed also draws which labels. Features by formula with a support vector machine and with a forest
are the floor. In the workdir: `study.csv`, a row a stage (`arm`, `fraction`, `seed`, and `value`,
`low`, `high` of macro F1 on the test part), `study_summary.csv` with paired differences to the
random arm, and `study.png`.

  :covid_ct, :kermany, :pneumoniamnist   pool: MedNIST, unlabelled
  :ham10000                              pool: its own training lesions
  :smoke                                 drawn images, a few steps
  +imported                              a third arm from --config.init_from=FILE, weights of this
                                         network; of another one with --config.model.name=...
  +careful                               arms that change less of what was pretrained: `frozen`, a
                                         new head alone, and `decayed`, rates that fall by half from
                                         each stage of the network to the one before
  +adapted                               an arm that goes on with SimCLR on the training images of
                                         the target, as Azizi et al. 2021 do

A pool of one's own, here MedNIST and Kermany's training films in one:

  python -m medjax.data prepare FOLDER/mednist FOLDER/chest_xray_kermany/train --out=runs/pool \
    --size=64 --channels=1
  ... --config.stages.pretrain.data.name=collection --config.stages.pretrain.data.root=runs/pool

PneumoniaMNIST's images are crops of Kermany's films, which no audit sees: such a pool does not
serve there. With 10 epochs of pretraining, macro F1 and its difference to random weights:
`:ham10000` 0.311, +0.023 (+0.007 to +0.039) with 10 % of the labels and 0.329, +0.025 (+0.010 to
+0.041) with all; of width 8 and with such a pool `:covid_ct` 0.593, -0.042 (-0.077 to -0.011) with
10 % and 0.689, +0.039 (+0.002 to +0.081) with all, `:kermany` 0.828, -0.002 (-0.017 to +0.013) and
0.818, +0.036 (+0.020 to +0.054). Of width 8 `:pneumoniamnist` 0.863, +0.002 (-0.014 to +0.018) and
0.844, -0.027 (-0.045 to -0.010).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import common

SEEDS = range(3)
MEDNIST = dict(name="zip_folder", root=f"{common.DATA}/mednist", channels=1)
FINETUNE = dict(batch_size=32, length="200 steps", checkpoint_every="200 steps")
GRAY = dict(pool=MEDNIST, views="simclr_gray", augment="cxr_safe", width=16, size=64)

# Every fraction leaves 12 images or more of the rarest class, but in HAM10000, where it is 6 to 8.
TARGETS = dict(
  covid_ct=GRAY
  | dict(data=dict(name="covid_ct", root=f"{common.DATA}/covid_ct"), fractions=("0.1", "0.3", "1")),
  kermany=GRAY
  | dict(
    data=dict(name="chest_xray_kermany", root=f"{common.DATA}/chest_xray_kermany"),
    fractions=("0.01", "0.1", "1"),
  ),
  pneumoniamnist=GRAY
  | dict(
    data=dict(name="npz", root=f"{common.DATA}/pneumoniamnist/pneumoniamnist.npz"),
    fractions=("0.01", "0.1", "1"),
  ),
  ham10000=dict(
    data=dict(name="ham10000", root=f"{common.DATA}/ham10000", channels=3),
    pool=dict(name="ham10000", root=f"{common.DATA}/ham10000", channels=3),
    views="simclr_color",
    augment="ham_aug",
    fractions=("0.1", "1"),
    width=8,
    size=64,
  ),
  smoke=GRAY
  | dict(
    data=dict(name="phantom", patients=40),
    pool=dict(name="phantom", patients=40, labelled=False, seed=1),
    fractions=("0.5", "1"),
    width=4,
    size=16,
  ),
)
TARGETS[""] = TARGETS["covid_ct"]
ARMS = dict(random=dict(init_from=""), pretrained=dict(init_from="pretrain"))
CAREFUL = dict(
  frozen=dict(
    init_from="pretrain",
    optimizer=dict(freeze=("encoder",)),
    train=dict(freeze_stats=True),
  ),
  decayed=dict(init_from="pretrain", optimizer=dict(layer_decay=0.5)),
)
ADAPTED = dict(adapted=dict(init_from="adapt"))
FLOORS = {
  name: dict(init_from="", objective=dict(name="classical", classifier=name))
  for name in ("svm", "random_forest")
}


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; a target, and `+imported`, `+careful` or `+adapted` for more arms."""
  target, _, more = arg.partition("+")
  chosen = common.choose(target, **TARGETS)
  added = {"": {}, "imported": dict(imported={}), "careful": CAREFUL, "adapted": ADAPTED}
  arms = ARMS | FLOORS | common.choose(more, **added)
  quick = target == "smoke"
  config = dict(
    title=f"Is pretraining worth it? {chosen['data']['name']}",
    model=dict(name="mednet", width=chosen["width"]),
    data=dict(image_size=chosen["size"], channels=1),
    study=dict(columns=("arm", "fraction", "seed"), repeats="seed", baseline="random"),
    eval=dict(every="50 steps", **(common.SMOKE_EVAL if quick else {})),
    init_from="WEIGHTS",  # of the arm that sets no other; named on the command line
    stages=tuple(_stages(chosen, arms, quick)),
  )
  return ConfigDict(config)


def _stages(chosen: dict, arms: dict, quick: bool) -> Iterator[dict]:
  """What is pretrained, then every arm with every fraction and seed."""
  tuning = common.SMOKE_TRAIN if quick else FINETUNE
  rows = [
    common.merged(_row(chosen, arm, fraction, seed) | dict(train=tuning), changes)
    for fraction in chosen["fractions"]
    for seed in (SEEDS[:1] if quick else SEEDS)
    for arm, changes in arms.items()
  ]
  pretrain = dict(
    name="pretrain",
    data=chosen["pool"],
    augment=chosen["views"],
    objective="simclr",
    audit_against=(rows[0]["name"],),
    init_from="",
    train=common.SMOKE_TRAIN if quick else dict(batch_size=256, length="20 epochs"),
  )
  yield pretrain
  if ADAPTED.keys() <= arms.keys():
    train = common.SMOKE_TRAIN if quick else dict(batch_size=128, length="200 steps")
    own = dict(name="adapt", data=chosen["data"], init_from="pretrain", train=train)
    yield pretrain | own
  yield from rows


def _row(chosen: dict, arm: str, fraction: str, seed: int) -> dict:
  """An arm with some of the labels; the seed also draws which."""
  return dict(
    name=f"{arm}_{fraction}_{seed}",
    cell=(arm, fraction, str(seed)),
    seed=seed,
    data=chosen["data"] | dict(split=dict(fraction=float(fraction), fraction_seed=seed)),
    augment=chosen["augment"],
  )
