// Package report shows what a run of extrapolate measured: a table in the
// terminal, pictures, one HTML page, CSV and JSON.
package report

// Run is everything a run measured, and what it was measured on.
type Run struct {
	Model      Model             `json:"model"`
	Text       string            `json:"text"` // where the text comes from, with its licence
	Lengths    []int             `json:"lengths"`
	Depths     []float64         `json:"depths"` // of the passkey, 0 = start of the context
	Seed       uint64            `json:"seed"`
	Policy     string            `json:"policy"`
	Sequences  int               `json:"sequences"` // texts a length
	Passkeys   int               `json:"passkeys"`  // passkeys a length
	Methods    []Method          `json:"methods"`
	Results    []Result          `json:"results"`
	Partial    bool              `json:"partial"` // stopped before the end
	Seconds    float64           `json:"seconds"`
	Machine    map[string]string `json:"machine"` // cpu, cores, os, go, commit
	Parameters map[string]string `json:"parameters"`
}

// Model describes the model measured.
type Model struct {
	Name          string `json:"name"`
	Parameters    int    `json:"parameters"`
	TrainedLength int    `json:"trained_length"`
	Layers        int    `json:"layers"`
	Heads         int    `json:"heads"`
	KVHeads       int    `json:"kv_heads"`
	HeadDim       int    `json:"head_dim"`
}

// Method is a row of the report.
type Method struct {
	Name    string `json:"name"`    // "rerope+logn"
	Title   string `json:"title"`   // "ReRoPE with log-n"
	Does    string `json:"does"`    // one line
	Paper   string `json:"paper"`   // "Su 2023, …"
	Detail  string `json:"detail"`  // parameters at the trained length: "window 64"
	Claimed string `json:"claimed"` // "strong", "weak", "none"
	URL     string `json:"url"`     // of the paper; may be empty
}

// Result is one method at one length.
type Result struct {
	Method      string  `json:"method"`
	Length      int     `json:"length"`
	BitsPerByte float64 `json:"bits_per_byte"`
	Bytes       int     `json:"bytes"` // over which bits were averaged
	Recall      float64 `json:"recall"`
	Digits      float64 `json:"digit_accuracy"`
	ByDepth     []Depth `json:"by_depth"`
	Seconds     float64 `json:"seconds"`
}

// Depth is the recall of passkeys at one depth.
type Depth struct {
	Depth   float64 `json:"depth"`
	Correct int     `json:"correct"`
	Total   int     `json:"total"`
}
