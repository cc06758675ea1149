//! `vpt serve` as its clients meet it: answers that are those of `vpt predict` to the last bit, whatever is asked beside them, and a
//! server that stays up whatever it is sent.

mod answers;
mod client;
mod deployment;
mod hostile;
mod life;
mod protocols;
