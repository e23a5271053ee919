"""Write adapters and models as GGUF, the file format of llama.cpp and Ollama.

lora.py writes a plain LoRA, model.py a base or merged model with its tokenizer, modelfile.py the
file that Ollama builds a model from. Whatever llama.cpp would compute otherwise than transformers
is refused, or is a notice.
"""
