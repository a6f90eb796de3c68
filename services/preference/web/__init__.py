"""The pages: annotators label, owners look. Server-rendered, a little plain JavaScript, no build step."""
