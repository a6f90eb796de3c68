"""What the model-bearing services share: loading, tokenizers, log-probs, packing. Knows no grpc, no redis."""
