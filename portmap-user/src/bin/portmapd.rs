fn main(){ println!("{}", portmap::object::bytes().len()); }
