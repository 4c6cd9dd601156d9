"""The server of an exported encoder: FastAPI and onnxruntime, neither torch nor mlflow."""
