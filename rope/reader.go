// JSON values (RFC 8259) of configurations, with the faults of each named.

package rope

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// reader keeps the first fault, so that a parser reads on without asking at
// every key. A key that is absent or null reads as zero.
type reader struct{ err error }

func (r *reader) fail(key, problem string, allowed []string) {
	if r.err == nil {
		r.err = &KeyError{key, problem, allowed}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func isNull(raw json.RawMessage) bool { return string(bytes.TrimSpace(raw)) == "null" }

func present(dict map[string]json.RawMessage, key string) (json.RawMessage, bool) {
	raw, ok := dict[key]
	return raw, ok && !isNull(raw)
}

func read[T any](r *reader, dict map[string]json.RawMessage, path, key, want string) (x T, ok bool) {
	raw, ok := present(dict, key)
	if ok && json.Unmarshal(raw, &x) != nil {
		r.fail(join(path, key), fmt.Sprintf("is %.40s, want %s", raw, want), nil)
		return *new(T), false
	}
	return x, ok
}

func (r *reader) text(dict map[string]json.RawMessage, path, key string) string {
	x, _ := read[string](r, dict, path, key, "a string")
	return x
}

func (r *reader) boolean(dict map[string]json.RawMessage, path, key string) (value, said bool) {
	return read[bool](r, dict, path, key, "true or false")
}

func (r *reader) numbers(dict map[string]json.RawMessage, path, key string) []float64 {
	x, _ := read[[]float64](r, dict, path, key, "a list of numbers")
	return x
}

func (r *reader) notNegative(dict map[string]json.RawMessage, path, key string) float64 {
	x, _ := read[float64](r, dict, path, key, "a number")
	if x < 0 {
		r.fail(join(path, key), fmt.Sprintf("is %v, want 0 or more", x), nil)
		return 0
	}
	return x
}

// positive refuses a zero that is written, since zero values mean defaults.
func (r *reader) positive(dict map[string]json.RawMessage, path, key string) float64 {
	x := r.notNegative(dict, path, key)
	if _, ok := present(dict, key); ok && x == 0 {
		r.fail(join(path, key), "is 0, want above 0", nil)
	}
	return x
}

func (r *reader) integer(dict map[string]json.RawMessage, path, key string) int {
	return r.whole(join(path, key), r.positive(dict, path, key))
}

func (r *reader) whole(key string, x float64) int {
	if x >= 1<<31 || x != float64(int64(x)) {
		r.fail(key, fmt.Sprintf("is %v, want a whole number below 2³¹", x), nil)
		return 0
	}
	return int(x)
}
