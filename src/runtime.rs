//! What a worker thread keeps for itself: values, buffers and a timer.

pub mod buffer_pool;
pub mod per_thread;
pub mod timer;
