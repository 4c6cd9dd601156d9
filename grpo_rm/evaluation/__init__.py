"""Measures of a classifier and of its embeddings: pure functions on arrays, no files and no configuration.

Two conventions hold in the whole package. `knn` and `geometry`, which compare every embedding with every other and gain
from a GPU, take torch tensors (embeddings float32, labels int64, all on one device), and so does `pixels.pixel_sums`,
whose logits are too many to keep. Everything else takes NumPy arrays (logits, embeddings and scores float32 or float64,
labels, class maps and predictions integer), `retrieval` too, because NumPy sorts faster than torch on a CPU. Results
are plain Python numbers, but for the confusion matrix, the per-image scores and the predictions of the linear probe:
NumPy arrays. `robustness` alone runs models: corrupted images are kept no longer than a batch.
"""
