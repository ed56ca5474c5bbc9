package report

import (
	"encoding/json"
	"math"
	"strconv"
)

// number is a float64 whose NaN and infinities, which JSON cannot say, are null.
// Null is read back as NaN.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if !finite(float64(n)) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

func (n *number) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*n = number(math.NaN())
		return nil
	}
	return json.Unmarshal(data, (*float64)(n))
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// The fields beside a plain type hide its fields of the same JSON name.
type (
	plainRun    Run
	plainResult Result
	plainDepth  Depth

	runJSON struct {
		plainRun
		Depths  []number `json:"depths"`
		Seconds number   `json:"seconds"`
	}
	resultJSON struct {
		plainResult
		BitsPerByte number `json:"bits_per_byte"`
		Recall      number `json:"recall"`
		Digits      number `json:"digit_accuracy"`
		Seconds     number `json:"seconds"`
	}
	depthJSON struct {
		plainDepth
		Depth number `json:"depth"`
	}
)

// MarshalJSON writes a number that is not finite as null.
func (r Run) MarshalJSON() ([]byte, error) {
	depths := make([]number, len(r.Depths))
	for i, d := range r.Depths {
		depths[i] = number(d)
	}
	return json.Marshal(runJSON{plainRun(r), depths, number(r.Seconds)})
}

// UnmarshalJSON reads null, where a number belongs, as NaN.
func (r *Run) UnmarshalJSON(data []byte) error {
	var in runJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*r = Run(in.plainRun)
	r.Seconds = float64(in.Seconds)
	for _, d := range in.Depths {
		r.Depths = append(r.Depths, float64(d))
	}
	return nil
}

// MarshalJSON writes a number that is not finite as null.
func (r Result) MarshalJSON() ([]byte, error) {
	return json.Marshal(resultJSON{plainResult(r), number(r.BitsPerByte), number(r.Recall), number(r.Digits), number(r.Seconds)})
}

// UnmarshalJSON reads null, where a number belongs, as NaN.
func (r *Result) UnmarshalJSON(data []byte) error {
	var in resultJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*r = Result(in.plainResult)
	r.BitsPerByte, r.Recall = float64(in.BitsPerByte), float64(in.Recall)
	r.Digits, r.Seconds = float64(in.Digits), float64(in.Seconds)
	return nil
}

// MarshalJSON writes a number that is not finite as null.
func (d Depth) MarshalJSON() ([]byte, error) {
	return json.Marshal(depthJSON{plainDepth(d), number(d.Depth)})
}

// UnmarshalJSON reads null, where a number belongs, as NaN.
func (d *Depth) UnmarshalJSON(data []byte) error {
	var in depthJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*d = Depth(in.plainDepth)
	d.Depth = float64(in.Depth)
	return nil
}

// Cells of the tables, on the terminal and in HTML.
const missing = "–" // not measured

func bitsText(x float64) string { return fixed(x, 3) }

func percentText(x float64) string { return fixed(100*x, 1) }

// fixed has so many decimals; a number too large to be a result is short, so
// that it cannot push a table apart.
func fixed(x float64, decimals int) string {
	switch {
	case !finite(x):
		return notFinite(x)
	case math.Abs(x) >= 1000:
		return strconv.FormatFloat(x, 'g', 3, 64)
	}
	return strconv.FormatFloat(x, 'f', decimals, 64)
}

func notFinite(x float64) string {
	switch {
	case math.IsInf(x, 1):
		return "∞"
	case math.IsInf(x, -1):
		return "−∞"
	}
	return "NaN"
}
