//! A model: a frozen backbone, the parts that a method learns beside it, a head; losses with their gradients, metrics, task
//! files. It knows of no run: what is configured, trained and reported stands above.

pub mod head;
pub mod loss;
pub mod methods;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod prompt;

pub use model::predict;
