"""The experiments of Go & Bissaliyeva on chest films of children, one network each.

"Using neural network to classify pneumonia in chest radiographs", on a network of 19 layers from a
public notebook; the sizes that it does not tell are the notebook's. Every config of this folder has
these variants, which add up, as in `:paper+augmented`:

  (none)       its training on the official test, with val dealt by patient: Adam 1e-4, batches of
               10, 15 epochs or three without a better val loss, 200 px, no augmentation
  :paper       the same, dealt by image (20 % to test, a fifth of the rest to val), and batch norm
               over image rows, the notebook's slip
  :augmented   turned by up to 90 degrees, shifted, zoomed, mirrored both ways, as in the notebook
  :safe        what a chest film bears in its place: 10 degrees, no mirror
  :gray        one channel, as in the notebook; the paper's networks see three equal ones
  :smoke       a few steps

The paper scores one sigmoid by binary cross-entropy. A softmax of two classes is the same function,
with 65 parameters more. Its 628 test images cannot be found again.
"""

from ml_collections import ConfigDict

from configs import common

CLEAN = dict(
  data=dict(
    name="chest_xray_kermany",
    root=f"{common.DATA}/chest_xray_kermany",
    image_size=200,
    channels=3,
    split=dict(val=0.1),
  ),
  augment=dict(name="none"),
  objective=dict(name="supervised", loss="softmax_ce", class_weights="none"),
  optimizer=dict(name="keras_adam", lr=1e-4, schedule="constant", warmup="0 %", clip=0.0),
  train=dict(batch_size=10, length="15 epochs", stop=dict(monitor="log_loss", patience=3)),
  eval=dict(select="log_loss"),
)
VARIANTS = dict(
  paper=dict(
    data=dict(split=dict(mode="image_random", test=0.2, val=0.2, seed=32)),
    model=dict(bn_axis="row"),
  ),
  augmented=dict(augment=dict(name="cxr_aug")),
  safe=dict(augment=dict(name="cxr_safe")),
  gray=dict(data=dict(channels=1)),
)


def experiment(arg: str, model: str) -> ConfigDict:
  """The experiment of a network: its name, and the variants."""
  own = dict(title=f"{model} on Kermany's chest films", model=dict(name=model, bn_momentum=0.99))
  return common.vary(arg, common.merged(CLEAN, own), 64, **VARIANTS)
