"""DLoRA's split: the frozen base in one process (the cloud), adapters and data in another.

Gao & Zhang, "DLoRA: Distributed Parameter-Efficient Fine-Tuning Solution for Large Language
Models", 2024, arXiv:2404.05182. Only its abstract could be verified; the protocol, and when
adapters are killed and revived, are our own.

    cloud    the blocks of the base
    device   rows, labels, embedding, output head, loss, LoRA adapters, optimizer

At every active site the cloud sends the layer's input x and gets s B A x back; in the backward
pass it sends the gradient of s B A x and gets that of x. Tokens, labels, adapter weights and
gradients never leave the device.

What this does not promise: hidden states do leave it, and the words can largely be read from
them. The connection is neither encrypted nor authenticated: use a private network or a tunnel.
"""
