package policy

import "fmt"

// ValueError reports a parameter or an argument outside what is allowed.
type ValueError struct {
	Name      string // "Sinks"
	Got, Want string
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("policy: %s is %s, want %s", e.Name, e.Got, e.Want)
}

func valueError(name string, got any, want string, args ...any) error {
	return &ValueError{Name: name, Got: fmt.Sprint(got), Want: fmt.Sprintf(want, args...)}
}

// MissingError reports a head that was not told what the policy needs.
type MissingError struct {
	Layer, Head int
	Missing     Needs
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("policy: layer %d head %d lacks %v; see Head", e.Layer, e.Head, e.Missing)
}
