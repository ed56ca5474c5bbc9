package policy

// Step is what a Trigger looks at.
type Step struct {
	Prompt bool // the prompt has just been read
	Since  int  // tokens since the last plan was applied, or the prompt was read
	Keys   int  // the most keys that a head holds
}

// Trigger says when it is time to make a plan.
type Trigger interface{ Due(Step) bool }

// AfterPrompt is due once, when the prompt was read.
type AfterPrompt struct{}

// Every is due after each N tokens that were generated.
type Every struct{ N int }

// Over is due when a head holds more than Keys keys.
type Over struct{ Keys int }

// Any is due when one of its triggers is.
type Any []Trigger

func (AfterPrompt) Due(s Step) bool { return s.Prompt }
func (t Every) Due(s Step) bool     { return !s.Prompt && t.N > 0 && s.Since >= t.N }
func (t Over) Due(s Step) bool      { return s.Keys > t.Keys }
func (t Any) Due(s Step) bool {
	for _, x := range t {
		if x.Due(s) {
			return true
		}
	}
	return false
}
