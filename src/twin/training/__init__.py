"""Rows → a LoRA adapter: ``samples`` says what a reply is, ``prefix_tree`` what is shared, ``backend_hf`` trains."""
