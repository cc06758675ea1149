//! The learned input of a frozen backbone: prompt tokens ([`tokens`]) or prompt pixels ([`pixels`]), and the file that
//! keeps a learned task ([`task_file`]).

pub mod pixels;
pub mod tokens;
