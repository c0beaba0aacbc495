"""Medical image classification in JAX: pretrain, fine-tune, evaluate, with intervals."""
