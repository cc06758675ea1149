//! backbone (see ARCHITECTURE.md).
