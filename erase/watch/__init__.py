"""A training in view: sample pictures, event files for TensorBoard, and a page of this computer."""
