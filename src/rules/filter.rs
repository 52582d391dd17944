//! Close's webhook-filter language: parse, evaluate, explain.
