package prefix

import "fmt"

// Known lists the tokens from the root to each page that an Index has, without a
// Match.
func Known(x Index) (known []string) {
	t := x.(*tree)
	for _, n := range t.collect(func(string, ...any) {}) {
		var before []int32
		for m := n.parent; m != nil; m = m.parent {
			before = append(append([]int32{}, m.tokens...), before...)
		}
		for k := range n.pages {
			known = append(known, fmt.Sprint(append(append([]int32{}, before...), n.tokens[:(k+1)*t.size]...)))
		}
	}
	return known
}
