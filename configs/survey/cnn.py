"""The plain network of Ning's survey, in sizes of our own, on Kermany's chest films.

  python -m medjax.main --config=configs/survey/cnn.py \
    --config.data.root=FOLDER --workdir=runs/survey_cnn

After "Medical Image Classification based on Deep Learning", its section on convolutional networks,
which tells layers but no sizes, no set and no training: all of it is our choice, and there is no
`:paper`. `:se` has a squeeze-and-excitation in each block, one of the networks it names. Not run to
its end on the real files.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants `:se` and `:smoke`."""
  kermany = dict(name="chest_xray_kermany", root=f"{common.DATA}/chest_xray_kermany")
  config = dict(
    title="The survey's plain network on Kermany's chest films",
    data=dict(image_size=128, channels=3, **kermany),
    augment=dict(name="cxr_safe"),
    model=dict(name="survey_cnn"),
    objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
    optimizer=dict(name="adamw", lr=1e-3),
    train=dict(batch_size=32, length="10 epochs"),
  )
  return common.vary(arg, config, se=dict(model=dict(name="survey_cnn_se")))
