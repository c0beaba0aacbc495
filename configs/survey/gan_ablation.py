"""Do generated images help a small class more than class weights do? On PneumoniaMNIST at 32 px.

  python -m medjax.main --config=configs/survey/gan_cond.py --workdir=runs/gan_cond
  python -m medjax.generate runs/gan_cond --balance 1 --out generated
  python -m medjax.main --config=configs/survey/gan_ablation.py --workdir=runs/gan_ablation

One network, trained on the films as they are, with class weights, with every class drawn alike, and
with generated films that bring the smaller class up to the larger; scored on the official test part
after equal steps, each against training without any of these by paired intervals. The generator
must have learnt from the same training part, which is checked; another folder of its films is named
by `--config.stages.generated.data.generated=FOLDER`. `:smoke` does without.

They do not, here: balanced accuracy 0.894 (0.868 to 0.919) as they are, with class weights +0.014
(+0.000 to +0.028), drawn alike +0.016 (+0.000 to +0.032), with generated films -0.037 (-0.058 to
-0.017).
"""

from ml_collections import ConfigDict

from configs import common


def _arm(name: str, weights: str = "none", **data) -> dict:
  objective = dict(name="supervised", class_weights=weights)
  return dict(name=name, cell=(name,), objective=objective, data=data)


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variant `:smoke`."""
  root = f"{common.DATA}/pneumoniamnist/pneumoniamnist.npz"
  config = dict(
    title="Generated films against class weights on PneumoniaMNIST",
    data=dict(name="npz", root=root, image_size=32),
    augment="cxr_safe",
    model=dict(name="survey_cnn"),
    optimizer=dict(name="adamw", lr=1e-3),
    train=dict(batch_size=64, length="730 steps"),
    eval=dict(select="balanced_accuracy"),
    study=dict(columns=("arm",), baseline="plain"),
    stages=(
      _arm("plain"),
      _arm("weighted", "balanced"),
      _arm("sampled", feeding=dict(sampling="class_balanced")),
      _arm("generated", generated="" if "smoke" in arg else "generated"),
    ),
  )
  return common.vary(arg, config, smallest=16)
