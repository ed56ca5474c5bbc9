package rope

import (
	"fmt"
	"strings"
)

// ValueError reports a field of a method, or an argument, whose value cannot
// be used.
type ValueError struct {
	Method    string // "yarn"; "" outside a method
	Field     string // "Factor"
	Got, Want string
}

func (e *ValueError) Error() string {
	if e.Method == "" {
		return fmt.Sprintf("rope: %s is %s, want %s", e.Field, e.Got, e.Want)
	}
	return fmt.Sprintf("rope: %s: %s is %s, want %s", e.Method, e.Field, e.Got, e.Want)
}

// KeyError reports a key of a model's configuration that is missing, unknown,
// or holds what cannot be used.
type KeyError struct {
	Key     string   // "rope_scaling.attn_factor"
	Problem string   // "is not known"
	Allowed []string // keys or values that would do; nil where there is no list
}

func (e *KeyError) Error() string {
	if e.Allowed == nil {
		return fmt.Sprintf("rope: key %q %s", e.Key, e.Problem)
	}
	return fmt.Sprintf("rope: key %q %s (have %s)", e.Key, e.Problem, strings.Join(e.Allowed, ", "))
}

// check keeps the first fault of a method's fields.
type check struct {
	method string
	err    error
}

func (c *check) fail(field string, got any, want string) {
	if c.err == nil {
		c.err = &ValueError{c.method, field, fmt.Sprint(got), want}
	}
}

// positive refuses what is not above zero; NaN too.
func (c *check) positive(field string, x float64) {
	if !(x > 0 && x <= maxFloat) {
		c.fail(field, x, "a finite number above 0")
	}
}

func (c *check) notNegative(field string, x float64) {
	if !(x >= 0 && x <= maxFloat) {
		c.fail(field, x, "a finite number, 0 or more")
	}
}

func (c *check) tokens(field string, n int) {
	if n <= 0 {
		c.fail(field, n, "a number of tokens above 0")
	}
}
