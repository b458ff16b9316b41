"""Other projects' files: Hugging Face, GGUF and PEFT, their names and their configs."""
