"""Rows → a LoRA adapter. ``samples`` says what a reply is, ``prefix_tree`` what is computed once, ``backend_hf`` trains."""
