"""What is expected of the prepared data, checked by Great Expectations. The only package that imports it.

Everything is built from code at each run, in a context that lives in memory: no file can drift from this one. Each
table has a suite of its own, and a page in the Data Docs:

- `schema`: a row per column of the manifest. If this fails, nothing else is looked at: the others need these columns;
- `images`: a row per image;
- `left_out`: a row per file of the source that is none of its images;
- `classes`: a row per split and class;
- `class_names`: a row per class of the data, or expected;
- `label_drift`, `channel_drift`: the data beside its previous version.
"""
