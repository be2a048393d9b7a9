"""One C99 file of a compressed network: what an ONNX graph computes, without any runtime."""
